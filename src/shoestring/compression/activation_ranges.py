"""The range to which activations are clamped before they are quantised, chosen from what was observed.

Source: Migacz 2017, "8-bit Inference with TensorRT" (Kullback-Leibler); Carson and Chen 2025, "Pychop",
section 5 (the four choices, and the grid of 20 thresholds).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

BINS = 4096
_GRID = 20
_SMALLEST_SHARE = 0.8

Quantise = Callable[[Float[Tensor, " n"], float], Float[Tensor, " n"]]
"""(values, threshold) -> the values clamped to ±threshold and quantised."""


class MagnitudeHistogram:
    """Counts of |x| over any number of batches, in `BINS` bins whose width doubles when a larger |x| comes.

    `low` and `high` are the extremes seen. `name` is the layer that errors name.
    Raises: ValueError for a batch that holds NaN or infinity.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.width = 0.0
        self.low, self.high = float("inf"), float("-inf")

    @property
    def absmax(self) -> float:
        return max(abs(self.low), abs(self.high)) if self.seen else 0.0

    @property
    def seen(self) -> bool:
        return self.low <= self.high

    @property
    def centres(self) -> Float[Tensor, " bins"]:
        """The middle of each bin."""
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * self.width

    def observe(self, x: Float[Tensor, "..."]) -> None:
        """Count one batch."""
        x = x.detach().float().cpu().flatten()
        if x.numel() == 0:
            return
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                f"layer {self.name!r} gave NaN or infinity on a calibration batch; no range covers it"
            )
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        self._widen(self.absmax)
        if self.width == 0:
            self.counts[0] += x.numel()
            return
        index = (x.abs() / self.width).long().clamp_(max=BINS - 1)
        self.counts += torch.bincount(index, minlength=BINS).double()

    def _widen(self, absmax: float) -> None:
        if self.width == 0:
            self.width = absmax / BINS
        while self.width * BINS < absmax * (1 - 1e-6):
            merged = self.counts.view(-1, 2).sum(1)
            self.counts = torch.cat([merged, torch.zeros_like(merged)])
            self.width *= 2

    def range(self, threshold: float) -> tuple[float, float]:
        """What was seen, cut at ±threshold."""
        return max(self.low, -threshold), min(self.high, threshold)


@runtime_checkable
class RangeChoice(Protocol):
    """Chooses the threshold on |x| from a histogram; `quantise` is what will be done to the values."""

    def threshold(self, seen: MagnitudeHistogram, quantise: Quantise) -> float: ...


@dataclass(frozen=True)
class MinMax:
    """Everything seen."""

    def threshold(self, seen: MagnitudeHistogram, quantise: Quantise) -> float:
        return seen.absmax


@dataclass(frozen=True)
class Percentile:
    """The magnitude below which `percent` of the values lie, to the width of a bin.

    Raises: ValueError for percent outside (0, 100].
    """

    percent: float | int = 99.99

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            raise ValueError(f"percent={self.percent} must lie above 0 and at most at 100")

    def threshold(self, seen: MagnitudeHistogram, quantise: Quantise) -> float:
        reached = seen.counts.cumsum(0) >= seen.counts.sum() * (self.percent / 100) * (1 - 1e-12)
        first = int(reached.nonzero()[0])
        return min((first + 1) * seen.width, seen.absmax)


@dataclass(frozen=True)
class MeanSquare:
    """The threshold, of 20 from 0.8 to 1.0 · max|x|, with the least mean square error."""

    def threshold(self, seen: MagnitudeHistogram, quantise: Quantise) -> float:
        centres = seen.centres

        def error(threshold: float) -> float:
            return float((seen.counts * (quantise(centres, threshold) - centres).square()).sum())

        return min(_thresholds(seen), key=error)


@dataclass(frozen=True)
class KullbackLeibler:
    """The threshold, of 20 from 0.8 to 1.0 · max|x|, whose quantised distribution diverges least."""

    def threshold(self, seen: MagnitudeHistogram, quantise: Quantise) -> float:
        return min(_thresholds(seen), key=lambda threshold: _divergence(seen, quantise, threshold))


def _thresholds(seen: MagnitudeHistogram) -> list[float]:
    """Largest first, so that of equals the largest wins."""
    return [float(share) * seen.absmax for share in torch.linspace(1.0, _SMALLEST_SHARE, _GRID)]


def _divergence(seen: MagnitudeHistogram, quantise: Quantise, threshold: float) -> float:
    """KL(P ‖ Q): P the values clamped at the threshold, Q each level's mass spread over its occupied bins."""
    n = int((seen.centres <= threshold).sum())
    if n == 0:
        return 0.0
    inside = seen.counts[:n]
    p = inside.clone()
    p[-1] += seen.counts[n:].sum()
    _, level = quantise(seen.centres[:n], threshold).unique(return_inverse=True)
    occupied = (inside > 0).double()
    mass = torch.bincount(level, weights=inside) / torch.bincount(level, weights=occupied).clamp(min=1)
    q = mass[level] * occupied
    p, q = p / p.sum(), q / q.sum()
    q = torch.where((p > 0) & (q == 0), torch.full_like(q, 1e-12), q)
    return float(torch.where(p > 0, p * (p / q).log(), torch.zeros_like(p)).sum())
