"""Time and memory of one picture by its resolution: Vim-Ti against DeiT-Ti, random weights, inference."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoestring.models.vision_mamba import VisionMamba
from shoestring.models.vision_mamba_config import VisionMambaConfig
from shoestring.models.vision_transformer import (
    VisionTransformer,
    VisionTransformerConfig,
    explicit_attention,
    fused_attention,
)
from shoestring.systems.card import Claim
from shoestring.systems.vision_mamba.claims import GROWTH, GROWTH_ATTENTION, MEMORY, TIME, TIME_FUSED
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.memory import LiveMemory
from shoestring.yardstick.timing import InterleavedTimes, time_interleaved

Image = Float[Tensor, "1 3 side side"]
ATTENTIONS = {"explicit": explicit_attention, "fused": fused_attention}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Which sides are timed how often, and the two networks. The largest two are in the ratio 1 : 2."""

    sides: tuple[int, ...] = (224, 448, 624, 1248)
    rounds: Mapping[int, int] = field(default_factory=lambda: {224: 9, 448: 7, 624: 5, 1248: 4})
    mamba: VisionMambaConfig = field(default_factory=VisionMambaConfig)
    transformer: VisionTransformerConfig = field(default_factory=VisionTransformerConfig)


def resolution_rows(
    sweep: Sweep, photo: Callable[[int], Float[Tensor, "3 side side"]], seed: int
) -> tuple[list[Row], list[str]]:
    """Rows of time, its growth and memory, and notes. photo: a picture by its side."""
    models = build_models(sweep, seed)
    images = {side: photo(side)[None] for side in sweep.sides}
    timed = {side: time_models(models, images[side], sweep.rounds[side]) for side in sweep.sides}
    rows = []
    for side in sweep.sides:
        for name, claim in (("explicit", TIME), ("fused", TIME_FUSED)):
            rows.append(_time_row(timed[side], name, side, claim if side == sweep.sides[-1] else None))
    large, half = timed[sweep.sides[-1]], timed[sweep.sides[-2]]
    for name, grows in (("vim", GROWTH), ("explicit", GROWTH_ATTENTION)):
        rows.append(grows.row(baseline=None, method=large.median(name) / half.median(name)))
    rows += memory_rows(models, images[sweep.sides[-1]])
    notes = [crossover_note(timed, name) for name in ATTENTIONS]
    return rows, notes


def build_models(sweep: Sweep, seed: int) -> dict[str, nn.Module]:
    """By name; both transformers have the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        models: dict[str, nn.Module] = {"vim": VisionMamba(sweep.mamba).eval()}
        for name, attention in ATTENTIONS.items():
            models[name] = VisionTransformer(sweep.transformer, attention).eval()
    models["fused"].load_state_dict(models["explicit"].state_dict())
    return models


@torch.inference_mode()
def time_models(models: Mapping[str, nn.Module], image: Image, rounds: int) -> InterleavedTimes:
    """Seconds of a forward pass."""
    works = {name: (lambda m=model: m(image, interpolate=True)) for name, model in models.items()}
    return time_interleaved(works, rounds=rounds, warmup=1, min_sample_seconds=0.02)


def _time_row(timed: InterleavedTimes, against: str, side: int, claim: Claim | None) -> Row:
    baseline, method = timed.median(against), timed.median("vim")
    ratio, spread = timed.ratio("vim", against), timed.interval("vim", against)
    label = f"{against} attention"
    if claim is not None:
        return claim.row(baseline=baseline, method=method, ratio=ratio, spread=spread, against=label)
    return Row(
        metric=f"time at {side} pixels, against {label}", kind="time", unit="s", better="lower",
        baseline=baseline, method=method, ratio=ratio, spread=spread, against=label,
    )  # fmt: skip


def memory_rows(models: Mapping[str, nn.Module], image: Image) -> list[Row]:
    """Bytes that a forward pass has alive at its peak, beyond weights and picture."""
    peaks = {}
    for name, model in models.items():
        with torch.no_grad(), LiveMemory(model, image) as memory:
            model(image, interpolate=True)
        peaks[name] = memory.peak_dynamic_bytes
    fused = Row(
        metric="peak bytes, largest picture, against fused attention", kind="memory", unit="B",
        better="lower", baseline=peaks["fused"], method=peaks["vim"], against="fused attention",
    )  # fmt: skip
    return [MEMORY.row(baseline=peaks["explicit"], method=peaks["vim"], against="explicit attention"), fused]


def crossover_note(timed: Mapping[int, InterleavedTimes], against: str) -> str:
    """From which side on Vim is faster, on the line through the logarithms of the ratios beside it."""
    points = [
        (math.log(side), math.log(times.ratio("vim", against))) for side, times in sorted(timed.items())
    ]
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        if y > 0 >= next_y:
            side = math.exp(x + (next_x - x) * y / (y - next_y))
            return f"faster than {against} attention from about {side:.0f} pixels on"
    always = all(y <= 0 for _, y in points)
    side = round(math.exp(points[0 if always else -1][0]))
    return f"{'faster' if always else 'not faster'} than {against} attention at {side} pixels already"
