"""Speed of rounding a float32 matrix to FP8: the compiled loop against a copy, gfloat and pychop 0.6.2.

All contenders take turns in one process; a ratio is the median over rounds of the ratio within one round.
Run: python benchmarks/rounding.py [--size 4096] [--rounds 5]. Writes benchmarks/results/rounding.{json,md}.
"""

import argparse
import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import gfloat
import gfloat.formats as gfloat_formats
import numpy as np
import pychop
import torch

from shoestring.files import write_text
from shoestring.kernels.rounding import round_to_format
from shoestring.numbers import FORMATS, FloatFormat, Rounding
from shoestring.numbers import round_to_format as round_plainly

RESULTS = Path(__file__).with_name("results")
OURS = "shoestring, compiled, into a given tensor"
COPY = "Tensor.copy_"
BARS = {COPY: 1.5, "gfloat": 1 / 100, "pychop, NumPy": 1 / 25, "pychop, torch": 1 / 20}


def contenders(x: torch.Tensor, fmt: FloatFormat) -> dict[str, Callable[[], object]]:
    """What is timed, by name; all round to nearest even."""
    array, out, copied = x.numpy(), torch.empty_like(x), torch.empty_like(x)
    info = gfloat_formats.format_info_ocp_e5m2 if fmt.exp_bits == 5 else gfloat_formats.format_info_ocp_e4m3

    def chop(backend: str, values: object) -> object:
        pychop.backend(backend)  # a global switch, so it is set for each call
        return pychop.Chop(exp_bits=fmt.exp_bits, sig_bits=fmt.sig_bits, rmode=1)(values)

    stochastic = Rounding.STOCHASTIC
    return {
        COPY: lambda: copied.copy_(x),
        OURS: lambda: round_to_format(x, fmt, out=out),
        "shoestring, compiled, new tensor": lambda: round_to_format(x, fmt),
        "Tensor.clone": lambda: x.clone(),
        "shoestring, compiled, stochastic": lambda: round_to_format(x, fmt, stochastic, out=out),
        "shoestring, plain torch": lambda: round_plainly(x, fmt),
        "pychop, NumPy": lambda: chop("numpy", array),
        "pychop, torch": lambda: chop("torch", x),
        "gfloat": lambda: gfloat.round_ndarray(info, array),
    }


def measure(size: int, rounds: int, fmt: FloatFormat) -> list[dict[str, object]]:
    """The rows of one format: those near a copy take turns among themselves, five times as often."""
    x = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(round_to_format(x, fmt), round_plainly(x, fmt))
    works = contenders(x, fmt)
    fast = {name: work for name, work in works.items() if name.startswith(("Tensor", "shoestring, compiled"))}
    slow = {name: work for name, work in works.items() if name == OURS or name not in fast}
    rows = rows_of(take_turns(fast, 5 * rounds))
    return rows + [row for row in rows_of(take_turns(slow, rounds)) if row["contender"] != OURS]


def take_turns(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, the order rotating; one more round before warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for turn in range(rounds + 1):
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            start = time.perf_counter()
            works[name]()
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def rows_of(seconds: dict[str, list[float]]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name, times in seconds.items():
        ratios = [ours / other for ours, other in zip(seconds[OURS], times, strict=True)]
        ratio, bar = statistics.median(ratios), BARS.get(name)
        rows.append(
            {
                "contender": name,
                "median_seconds": statistics.median(times),
                "ours_over_it": ratio,
                "spread": [min(ratios), max(ratios)],
                "bar": bar,
                "holds": None if bar is None else ratio <= bar,
            }
        )
    return rows


def table(rows: list[dict[str, object]]) -> str:
    lines = [
        "| format | contender | median ms | our time / its time | spread | bar | holds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = np.array(row["spread"])
        bar, holds = (
            ("", "") if row["bar"] is None else (f"{row['bar']:.3g}", "yes" if row["holds"] else "no")
        )
        lines.append(
            f"| {row['format']} | {row['contender']} | {1e3 * float(str(row['median_seconds'])):.1f} "
            f"| {row['ours_over_it']:.3g} | {low:.3g} .. {high:.3g} | {bar} | {holds} |"
        )
    return "\n".join(lines) + "\n"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    for name in ("e4m3_ieee", "e5m2"):
        measured = measure(arguments.size, arguments.rounds, FORMATS[name])
        rows += [{"format": name, **row} for row in measured]
    setting = {
        "size": arguments.size,
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "numpy", "gfloat", "pychop")
        },
    }
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / "rounding.json", json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")
    versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    heading = (
        f"# Rounding {arguments.size}² float32 values to FP8, to nearest even\n\n{setting['processor']}, "
        f"{setting['threads']} threads, {versions}.\n\n"
    )
    write_text(RESULTS / "rounding.md", heading + table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
