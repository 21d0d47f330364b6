"""The process that `process_memory` starts: prepares, runs the steps, prints its high-water mark.

Imports nothing of its own accord: whatever it loads would be part of what is measured.
"""

import importlib
import json
import sys


def main(address: str, arguments: str, steps: str) -> None:
    """Run `steps` steps of the experiment at "module:function" and print the bytes as the last line."""
    module, _, function = address.partition(":")
    found = importlib.import_module(module)
    for name in function.split("."):
        found = getattr(found, name)
    step = found(**json.loads(arguments))  # type: ignore[operator]
    for _ in range(int(steps)):
        step()
    print(high_water_bytes())


def high_water_bytes() -> int:
    """Most bytes that this process has had resident.

    VmHWM belongs to this program alone; `ru_maxrss` would begin with the size of the process that forked it.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        raise RuntimeError(
            "the resident set's high-water mark is read from /proc, which is missing here"
        ) from None
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
