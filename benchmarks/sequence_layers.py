"""Time and peak memory of one training step of sequence layers, ours and other people's, as sequences grow.

    python benchmarks/sequence_layers.py [--longest 65536] [--seconds 2] [--gib 4] [--out FOLDER]

One layer each on a batch of one, 128 features, forward and backward, in turns. A layer whose step takes more
than --seconds is left out from there on, one that takes more than --gib after it. Every length is saved when
it is done, and a second call goes on from there; delete the folder to begin anew. Layers and peers that are
not installed are named and left out. Written: a JSON document and a page of curves. Exit 1 where a bar falls
short.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.files import write_text
from shoestring.yardstick.environment import Environment
from shoestring.yardstick.memory import LiveMemory
from shoestring.yardstick.timing import time_interleaved

DIM, HEADS = 128, 4
FIRST_LENGTH = 1024
JUDGED_LENGTH = 16384
FITTED_FROM = 4096
"""Below it the fixed cost of a call hides the growth."""


@dataclass(frozen=True)
class Contestant:
    """build: length -> layer. kind: what it is compared with; exponent: the bar on its growth, if ours."""

    name: str
    kind: str
    build: Callable[[int], nn.Module]
    exponent: float | None = None

    @property
    def is_ours(self) -> bool:
        return self.exponent is not None


def s4(length: int) -> nn.Module:
    from shoestring.layers.state_space.s4 import S4

    return S4(DIM)


def long_convolution(length: int) -> nn.Module:
    from shoestring.layers.long_convolution.long_convolution import LongConv

    return LongConv(DIM, length, causal=True)


def mamba(length: int) -> nn.Module:
    from shoestring.layers.mamba.mamba import MambaMixer

    return MambaMixer(DIM)


def clusters(length: int) -> int:
    """sqrt(length), rounded to a power of two: clusters of as many tokens as there are clusters."""
    return 2 ** round(math.log2(length) / 2)


def routing(length: int) -> nn.Module:
    from shoestring.layers.routing.routing_attention import HeadSplit, RoutingAttention
    from shoestring.layers.routing.routing_options import RoutingOptions

    k = clusters(length)
    options = RoutingOptions(n_clusters=k, window=length // k)
    return RoutingAttention(DIM, HeadSplit(HEADS, HEADS // 2, HEADS // 2, routing=options))


def axial(length: int) -> nn.Module:
    """A row and a column layer on a grid that is as square as the length allows."""
    from shoestring.layers.axial.axial_attention import AxialAttention

    height = clusters(length)

    class Grid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(AxialAttention(DIM, HEADS, axis=axis, n_axes=2) for axis in (1, 0)))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x.unflatten(1, (height, -1))).flatten(1, 2)

    return Grid()


def linformer(length: int) -> nn.Module:
    from shoestring.layers.low_rank.linformer import LinformerAttention

    return LinformerAttention(DIM, HEADS, length, 256)


def seqboat(length: int) -> nn.Module:
    from shoestring.layers.seqboat.seqboat import SeqBoat

    return SeqBoat(DIM)


def peer_mambapy(length: int) -> nn.Module:
    from mambapy.mamba import MambaBlock, MambaConfig

    return MambaBlock(MambaConfig(d_model=DIM, n_layers=1))


def peer_transformers_mamba(length: int) -> nn.Module:
    from transformers.models.mamba.configuration_mamba import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    return MambaMixer(MambaConfig(hidden_size=DIM, num_hidden_layers=1), layer_idx=0)


def peer_transformers_mamba2(length: int) -> nn.Module:
    from transformers.models.mamba2.configuration_mamba2 import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=DIM, num_heads=HEADS, head_dim=2 * DIM // HEADS, n_groups=1, num_hidden_layers=1
    )
    return Mamba2Mixer(config, layer_idx=0)


def peer_linformer(length: int) -> nn.Module:
    from linformer import LinformerSelfAttention

    return LinformerSelfAttention(DIM, length, k=256, heads=HEADS)


def peer_routing(length: int) -> nn.Module:
    from routing_transformer.routing_transformer import SelfAttention

    return SelfAttention(
        DIM, 1, length, HEADS, HEADS // 2, window_size=length // clusters(length), causal=True,
        local_attn_window_size=256,
    )  # fmt: skip


def peer_attention(length: int) -> nn.Module:
    from x_transformers.x_transformers import Attention

    return Attention(DIM, heads=HEADS, dim_head=DIM // HEADS, causal=True, flash=True)


def torch_attention(length: int) -> nn.Module:
    from shoestring.layers.axial.line_attention import LineAttention

    return LineAttention(DIM, HEADS, causal=True)


CONTESTANTS = (
    Contestant("S4", "exact", s4, 1.1),
    Contestant("long convolution", "exact", long_convolution, 1.1),
    Contestant("Mamba", "mamba", mamba, 1.1),
    Contestant("routing", "routing", routing, 1.6),
    Contestant("axial, row and column", "exact", axial, 1.55),
    Contestant("Linformer", "linformer", linformer, 1.1),
    Contestant("SeqBoat", "exact", seqboat, 1.1),
    Contestant("mambapy", "mamba", peer_mambapy),
    Contestant("transformers, Mamba", "mamba", peer_transformers_mamba),
    Contestant("transformers, Mamba-2", "mamba", peer_transformers_mamba2),
    Contestant("linformer", "linformer", peer_linformer),
    Contestant("routing-transformer", "routing", peer_routing),
    Contestant("x-transformers, exact attention", "exact", peer_attention),
    Contestant("torch, exact attention", "exact", torch_attention),
)
"""Layers that no package offers are compared with exact attention, which a user would take instead."""


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


def measure_length(length: int, names: list[str], seconds: float, limit_bytes: int) -> dict[str, Any]:
    """Points of the layers that could run, and why the others are out from here on."""
    works: dict[str, Callable[[], None]] = {}
    peaks: dict[str, int] = {}
    out: dict[str, str] = {}
    for contestant in CONTESTANTS:
        if contestant.name not in names:
            continue
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


def judge(results: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """(layer, what was found, whether the bar holds) for each of our layers and each bar."""
    verdicts = []
    for ours in filter(lambda contestant: contestant.is_ours, CONTESTANTS):
        curve = {int(n): result["points"].get(ours.name) for n, result in results.items()}
        curve = {length: point for length, point in curve.items() if point is not None}
        peers = [c.name for c in CONTESTANTS if c.kind == ours.kind and not c.is_ours]
        worst: list[tuple[float, int, str]] = []
        for length, point in curve.items():
            rivals = [(point["ratios"][peer], length, peer) for peer in peers if peer in point["ratios"]]
            if rivals:
                worst.append(max(rivals))
        if worst:
            ratio, length, peer = max(worst)
            found = f"at worst {ratio:.2f} of the time of {peer}, at {length}"
            verdicts.append((ours.name, found, ratio <= 1))
        for ratio, length, peer in worst:
            if length == JUDGED_LENGTH:
                verdicts.append((ours.name, f"{ratio:.2f} of the time of {peer} at {length}", ratio <= 0.5))
        for what, key in (("time", "seconds"), ("memory", "peak_bytes")):
            slope = exponent(list(curve), [point[key] for point in curve.values()])
            if slope is not None and ours.exponent is not None:
                verdicts.append(
                    (ours.name, f"{what} grows with exponent {slope:.2f}", slope <= ours.exponent)
                )
    return verdicts


def picture(results: dict[str, Any], path: Path) -> None:
    """Both curves of every layer, ours drawn through, peers dashed, on one page."""
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=2, rows=1, subplot_titles=("seconds of a step", "peak MiB of a step"))
    for contestant in CONTESTANTS:
        curve = [(int(n), r["points"][contestant.name]) for n, r in results.items()
                 if contestant.name in r["points"]]  # fmt: skip
        line = {"dash": "solid" if contestant.is_ours else "dash"}
        columns = ([p["seconds"] for _, p in curve], [p["peak_bytes"] / 2**20 for _, p in curve])
        for column, values in enumerate(columns, start=1):
            figure.add_scatter(
                x=[length for length, _ in curve], y=values, name=contestant.name, line=line,
                legendgroup=contestant.name, showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(type="log", title="tokens").update_yaxes(type="log")
    figure.write_html(path, include_plotlyjs=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--longest", type=int, default=65536)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=Path("build/sequence_layers"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "sequence_layers.json"
    document = json.loads(path.read_text()) if path.exists() else {"results": {}}
    document["environment"] = asdict(Environment.here())
    results: dict[str, Any] = document["results"]
    length = FIRST_LENGTH
    while length <= options.longest:
        if str(length) not in results:
            gone = {name for result in results.values() for name in result["out"]}
            names = [c.name for c in CONTESTANTS if c.name not in gone]
            found = measure_length(length, names, options.seconds, int(options.gib * 2**30))
            results[str(length)] = found
            write_text(path, json.dumps(document, indent=1) + "\n")
            for name, reason in found["out"].items():
                print(f"{name} is left out of longer sequences: {reason}", file=sys.stderr)
        for name, point in results[str(length)]["points"].items():
            cost = f"{point['seconds'] * 1e3:10.1f} ms  {point['peak_bytes'] / 2**20:8.1f} MiB"
            print(f"{length:6} {name:34} {cost}")
        length *= 2
    picture(results, options.out / "sequence_layers.html")
    verdicts = judge(results)
    for name, found, holds in verdicts:
        print(f"{'holds' if holds else 'SHORT'}  {name:24} {found}")
    return 0 if all(holds for _, _, holds in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
