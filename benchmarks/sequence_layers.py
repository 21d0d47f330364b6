"""Time and peak memory of one training step of sequence layers, ours and other people's, as sequences grow.

    python benchmarks/sequence_layers.py [--longest 65536] [--seconds 2] [--gib 4] [--out FOLDER]
        [--state-spaces FOLDER]

One layer each on a batch of one, 128 features, forward and backward, in turns. A layer whose step takes more
than --seconds is left out from there on, one that takes more than --gib after it. Every length is saved when
it is done, and a second call goes on from there; delete the folder to begin anew. Layers and peers that are
not installed are named and left out; the S4 of its authors comes from a checkout of their repository.

Bars: no slower than the fastest peer of the same kind at any length, twice as fast as each at 16,384, memory
that grows with the exponent of the layer. Written: a JSON document and a page of curves. Exit 1 where a bar
falls short.
"""

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sequence_contestants import DIM, Contestant, contestants
from shoestring.files import write_text
from shoestring.yardstick.environment import Environment
from shoestring.yardstick.memory import LiveMemory
from shoestring.yardstick.timing import time_interleaved

FIRST_LENGTH = 1024
JUDGED_LENGTH = 16384
FITTED_FROM = 4096
"""Below it the fixed cost of a call hides the growth."""


@dataclass
class Point:
    """Seconds (median), ratios to every other layer timed in the same rounds, and peak bytes of a step."""

    seconds: float
    peak_bytes: int
    ratios: dict[str, float]


def training_step(layer: nn.Module, length: int) -> Callable[[], None]:
    x = torch.randn(1, length, DIM, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def step() -> None:
        result: Any = layer(x)
        while not isinstance(result, Tensor):  # some give losses or statistics behind the output
            result = result[0]
        result.square().mean().backward()
        layer.zero_grad(set_to_none=True)
        x.grad = None

    return step


def first_steps(contestant: Contestant, length: int, seconds: float) -> tuple[Callable[[], None], float, int]:
    """A training step, the seconds of its second call, and its peak bytes; 0 if it took more than `seconds`.

    Following the memory of a layer that loops over tokens takes many times as long as a step.
    """
    torch.manual_seed(0)
    layer = contestant.build(length)
    step = training_step(layer, length)
    step()
    start = time.perf_counter()
    step()
    took = time.perf_counter() - start
    if took > seconds:
        return step, took, 0
    with LiveMemory(layer) as memory:
        step()
    return step, took, memory.peak_dynamic_bytes


def measure_length(
    length: int, running: list[Contestant], seconds: float, limit_bytes: int
) -> dict[str, Any]:
    """Points of the layers that could run, and why the others are out from here on."""
    works: dict[str, Callable[[], None]] = {}
    peaks: dict[str, int] = {}
    out: dict[str, str] = {}
    for contestant in running:
        try:
            step, took, peak = first_steps(contestant, length, seconds)
        except ImportError as error:
            out[contestant.name] = f"not installed: {error}"
            continue
        except Exception as error:
            if contestant.is_ours:
                raise
            out[contestant.name] = f"does not run with these versions: {error}"
            continue
        if took > seconds:
            out[contestant.name] = f"{took:.1f} s a step at {length}"
            continue
        if peak > limit_bytes:
            out[contestant.name] = f"{peak / 2**30:.1f} GiB at {length}"
        peaks[contestant.name] = peak
        works[contestant.name] = step
    points = {}
    if len(works) > 1:
        timed = time_interleaved(works, rounds=3, warmup=1)
        for name in works:
            ratios = {other: timed.ratio(name, other) for other in works if other != name}
            points[name] = asdict(Point(timed.median(name), peaks[name], ratios))
    return {"points": points, "out": out}


def exponent(lengths: list[int], values: list[float]) -> float | None:
    """Slope of log value over log length from FITTED_FROM on; None with fewer than three points."""
    pairs = [
        (math.log(length), math.log(value))
        for length, value in zip(lengths, values, strict=True)
        if length >= FITTED_FROM
    ]
    if len(pairs) < 3:
        return None
    mean_x, mean_y = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in pairs) / sum((x - mean_x) ** 2 for x, _ in pairs)


def judge(everyone: tuple[Contestant, ...], results: dict[str, Any]) -> list[tuple[str, str, bool | None]]:
    """(layer, what was found, whether the bar holds, None without one) for each of our layers."""
    verdicts: list[tuple[str, str, bool | None]] = []
    for ours in filter(lambda contestant: contestant.is_ours, everyone):
        curve = {int(n): result["points"].get(ours.name) for n, result in results.items()}
        curve = {length: point for length, point in curve.items() if point is not None}
        for kind in ours.rivals:
            peers = [c.name for c in everyone if c.kind == kind]
            ratios = [
                (point["ratios"][peer], length, peer)
                for length, point in curve.items()
                for peer in peers
                if peer in point["ratios"]
            ]
            if ratios:
                ratio, length, peer = max(ratios)
                verdicts.append(
                    (ours.name, f"at worst {ratio:.2f} of the time of {peer}, at {length}", ratio <= 1)
                )
            far = [found for found in ratios if found[1] == JUDGED_LENGTH]
            if far:
                ratio, length, peer = max(far)
                verdicts.append((ours.name, f"{ratio:.2f} of the time of {peer} at {length}", ratio <= 0.5))
        for what, key, bar in (("time", "seconds", None), ("memory", "peak_bytes", ours.growth)):
            slope = exponent(list(curve), [point[key] for point in curve.values()])
            if slope is not None:
                holds = None if bar is None else slope <= bar
                verdicts.append((ours.name, f"{what} grows with exponent {slope:.2f}", holds))
    return verdicts


def picture(everyone: tuple[Contestant, ...], results: dict[str, Any], path: Path) -> None:
    """Both curves of every layer on one page: a colour for each kind, ours drawn through, peers dashed."""
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=2, rows=1, subplot_titles=("seconds of a step", "peak MiB of a step"))
    kinds = list(dict.fromkeys(contestant.colour for contestant in everyone))
    drawn: Counter[str] = Counter()
    for contestant in everyone:
        curve = [(int(n), r["points"][contestant.name]) for n, r in results.items()
                 if contestant.name in r["points"]]  # fmt: skip
        if not curve:
            continue
        colour = qualitative.Dark24[kinds.index(contestant.colour)]
        dash = "solid" if contestant.is_ours else ("dash", "dot", "dashdot")[drawn[contestant.colour] % 3]
        drawn[contestant.colour] += not contestant.is_ours
        columns = ([p["seconds"] for _, p in curve], [p["peak_bytes"] / 2**20 for _, p in curve])
        for column, values in enumerate(columns, start=1):
            figure.add_scatter(
                x=[length for length, _ in curve], y=values, name=contestant.name,
                line={"dash": dash, "color": colour, "width": 3 if contestant.is_ours else 1.5},
                legendgroup=contestant.name, showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
    lengths = [int(n) for n in results]
    figure.update_xaxes(
        type="log", title="tokens", tickvals=lengths, ticktext=[f"{n // 1024}k" for n in lengths]
    )
    figure.update_yaxes(type="log", dtick=1)
    figure.update_layout(
        template="plotly_white",
        height=560,
        legend={"tracegroupgap": 0},
        margin={"t": 40, "b": 10, "l": 50, "r": 10},
    )
    figure.write_html(path, include_plotlyjs=True, config={"displayModeBar": False})


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--longest", type=int, default=65536)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=Path("build/sequence_layers"))
    parser.add_argument("--state-spaces", type=Path, help="a checkout of github.com/state-spaces/s4")
    options = parser.parse_args()
    everyone = contestants(options.state_spaces)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "sequence_layers.json"
    document = json.loads(path.read_text()) if path.exists() else {"results": {}}
    document["environment"] = asdict(Environment.here())
    results: dict[str, Any] = document["results"]
    length = FIRST_LENGTH
    while length <= options.longest:
        if str(length) not in results:
            gone = {name for result in results.values() for name in result["out"]}
            running = [c for c in everyone if c.name not in gone]
            found = measure_length(length, running, options.seconds, int(options.gib * 2**30))
            results[str(length)] = found
            write_text(path, json.dumps(document, indent=1) + "\n")
            for name, reason in found["out"].items():
                print(f"{name} is left out of longer sequences: {reason}", file=sys.stderr)
        for name, point in results[str(length)]["points"].items():
            cost = f"{point['seconds'] * 1e3:10.1f} ms  {point['peak_bytes'] / 2**20:8.1f} MiB"
            print(f"{length:6} {name:34} {cost}")
        length *= 2
    picture(everyone, results, options.out / "sequence_layers.html")
    verdicts = judge(everyone, results)
    for name, found, holds in verdicts:
        print(f"{ {True: 'holds', False: 'SHORT', None: ''}[holds]:6} {name:24} {found}")
    return 1 if any(holds is False for _, _, holds in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
