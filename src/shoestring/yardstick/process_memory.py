"""Resident set size of an experiment, each time in a process of its own.

A process that has run something keeps the pages it got, so two experiments in one process cannot be told
apart. Here every configuration runs in a fresh one, twice: once stopped before the step, once through it; the
difference of the two high-water marks is what the step needs. It holds what `LiveMemory` cannot see: scratch
space of kernels, fragmentation, memory that is no tensor.
"""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shoestring.yardstick import process_memory_child


@dataclass(frozen=True)
class ResidentMemory:
    """High-water marks of the resident set: after the preparation, and after the steps."""

    prepared_bytes: int
    peak_bytes: int

    @property
    def step_bytes(self) -> int:
        """What the steps added to the preparation."""
        return max(0, self.peak_bytes - self.prepared_bytes)


def resident_memory(prepare: Callable[..., Callable[[], object]], **arguments: Any) -> ResidentMemory:
    """Run `prepare(**arguments)` in fresh processes; it returns the step, which is called twice.

    The first call warms up what is set up once (thread pools, compiled kernels). `prepare` must be a function
    of an importable module and its arguments plain JSON values, for they travel to another process by name.
    One malloc arena is used, so that the mark does not depend on which thread allocated.

    Raises: ValueError for a nested function or a lambda; TypeError for arguments that JSON lacks;
    RuntimeError with the child's last line when it fails, and where /proc has no high-water mark.
    """
    name, text = _address(prepare), json.dumps(arguments)
    return ResidentMemory(prepared_bytes=_run(name, text, steps=0), peak_bytes=_run(name, text, steps=2))


def _address(function: Callable[..., Any]) -> str:
    if "<" in function.__qualname__ or function.__module__ == "__main__":
        raise ValueError(
            f"prepare={function.__qualname__} cannot be found by another process; "
            "define it at the top level of a module that can be imported"
        )
    return f"{function.__module__}:{function.__qualname__}"


def _run(address: str, arguments: str, steps: int) -> int:
    environment = os.environ | {
        "MALLOC_ARENA_MAX": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-P", inspect.getfile(process_memory_child), address, arguments, str(steps)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        raise RuntimeError(f"{address}: the measuring process failed: {last}")
    return int(done.stdout.strip().splitlines()[-1])
