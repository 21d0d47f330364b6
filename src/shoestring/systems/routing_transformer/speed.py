"""Time and memory of routing heads beside dense causal attention, at growing lengths."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.layers.routing.routing_heads import RoutingHeads
from shoestring.layers.routing.routing_options import RoutingOptions
from shoestring.systems.routing_transformer.claims import (
    EXPONENT,
    LONGER,
    LONGEST,
    MODES,
    PEAK_MEMORY,
    SHORTEST,
    SPEED,
)
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.memory import LiveMemory
from shoestring.yardstick.timing import InterleavedTimes, time_interleaved

N_HEADS, HEAD_DIM = 4, 64


def speed_rows(lengths: Mapping[int, int], rounds: int, seed: int) -> list[Row]:
    """For each length the time of both modes against `scaled_dot_product_attention`, then how it grows, and
    memory. lengths: those that the claims name, each with what is measured in its stead: itself, or a shorter
    one in a smoke run."""
    generator = torch.Generator().manual_seed(seed)
    timed = {n: _times(real, rounds, generator) for n, real in lengths.items()}
    rows = [_time_row(mode, n, times) for n, times in timed.items() for mode in MODES]
    growth = math.log(lengths[LONGEST] / lengths[SHORTEST])
    rows += [_exponent(mode, timed[SHORTEST], timed[LONGEST], growth) for mode in MODES]
    rows += [_memory(mode, lengths[LONGER], generator) for mode in MODES]
    return rows


def routing_heads(n: int, mode: str) -> RoutingHeads:
    """Heads with the paper's k = round(√n) and w = n // k."""
    heads = RoutingHeads(N_HEADS, HEAD_DIM, RoutingOptions(*RoutingOptions.sizes_for(n), mode=mode))
    heads.init_centroids()
    return heads.eval()


def _tensors(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, 1, N_HEADS, n, HEAD_DIM, generator=generator)
    return q, k, v


def _times(n: int, rounds: int, generator: torch.Generator) -> InterleavedTimes:
    q, k, v = _tensors(n, generator)
    modes = {mode: routing_heads(n, mode) for mode in MODES}

    def dense() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    with torch.inference_mode():
        return time_interleaved(
            {
                "dense": dense,
                "top-w": lambda: modes["top-w"](q, None, v),
                "strict": lambda: modes["strict"](q, None, v),
            },
            rounds=rounds,
        )


def _time_row(mode: str, n: int, times: InterleavedTimes) -> Row:
    return SPEED[mode, n].row(
        baseline=times.median("dense"),
        method=times.median(mode),
        ratio=times.ratio(mode, "dense"),
        spread=times.interval(mode, "dense"),
    )


def _exponent(mode: str, short: InterleavedTimes, long: InterleavedTimes, growth: float) -> Row:
    """Slope of log time over log length."""

    def slope(name: str) -> float:
        return math.log(long.median(name) / short.median(name)) / growth

    return EXPONENT[mode].row(baseline=slope("dense"), method=slope(mode))


def _memory(mode: str, n: int, generator: torch.Generator) -> Row:
    """Peak of what is allocated beside the inputs, against scores that stand in memory."""
    q, k, v = _tensors(n, generator)
    heads = routing_heads(n, mode)
    with torch.inference_mode():
        with LiveMemory(q, v, heads) as method:
            heads(q, None, v)
        with LiveMemory(q, k, v) as baseline:
            scores = (q @ k.transpose(-1, -2)).mul_(HEAD_DIM**-0.5)
            scores.masked_fill_(torch.ones(n, n, dtype=torch.bool).triu_(1), -torch.inf)
            scores.softmax(-1) @ v
    return PEAK_MEMORY[mode].row(baseline=baseline.peak_dynamic_bytes, method=method.peak_dynamic_bytes)
