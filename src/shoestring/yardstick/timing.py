"""Paired time: callables take turns in one process, so that what slows the machine slows all of them.

Absolute times of a shared machine mean little; the ratio of two that alternate means much. Each round times
every callable once, in an order that rotates; the ratio of a round is free of the drift between rounds, and
the median over rounds is free of single disturbances.
"""

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch

Work = Callable[[], object]

_MAX_INNER = 1_000_000


class TimeFigures(TypedDict):
    """The fields of a `Row` of time."""

    baseline: float
    method: float
    ratio: float
    spread: tuple[float, float]


@dataclass(frozen=True)
class InterleavedTimes:
    """Seconds per call: one list per callable, one entry per round.

    `inner` is how many calls one entry averages over, `threads` the intra-op threads of torch, `seed` that of
    the bootstrap.
    """

    seconds: Mapping[str, tuple[float, ...]]
    inner: Mapping[str, int]
    threads: int
    seed: int

    def median(self, name: str) -> float:
        """Median seconds per call."""
        return float(np.median(self.seconds[self._known(name)]))

    def ratio(self, method: str, baseline: str) -> float:
        """Median over rounds of (seconds of `method` / seconds of `baseline`)."""
        return float(np.median(self._ratios(method, baseline)))

    def interval(
        self, method: str, baseline: str, *, confidence: float = 0.95, resamples: int = 2000
    ) -> tuple[float, float]:
        """Percentile bootstrap interval of `ratio`: rounds are drawn with replacement, seeded.

        Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, ch. 13.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"confidence={confidence} must lie between 0 and 1, e.g. 0.95")
        ratios = self._ratios(method, baseline)
        draws = np.random.default_rng(self.seed).integers(0, len(ratios), (resamples, len(ratios)))
        medians = np.median(ratios[draws], axis=1)
        low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)

    def figures(self, method: str, baseline: str) -> TimeFigures:
        """Both medians in seconds, their paired ratio and its 95 % interval, as a `Row` names them."""
        return TimeFigures(
            baseline=self.median(baseline),
            method=self.median(method),
            ratio=self.ratio(method, baseline),
            spread=self.interval(method, baseline),
        )

    def _ratios(self, method: str, baseline: str) -> np.ndarray:
        return np.array(self.seconds[self._known(method)]) / np.array(self.seconds[self._known(baseline)])

    def _known(self, name: str) -> str:
        if name not in self.seconds:
            raise ValueError(f"{name!r} was not timed; there are {', '.join(map(repr, self.seconds))}")
        return name


@dataclass(frozen=True)
class PairedTime:
    """A method against a baseline: median seconds per call of each, ratio of a pair and its 95 % interval."""

    baseline_seconds: float
    method_seconds: float
    ratio: float
    spread: tuple[float, float]
    threads: int
    rounds: int


def time_pair(
    baseline: Work,
    method: Work,
    *,
    rounds: int = 15,
    warmup: int = 2,
    min_sample_seconds: float | int = 2e-3,
    seed: int = 0,
) -> PairedTime:
    """Time `method` against `baseline`: ratio < 1 means that the method is faster.

    Arguments and errors as in `time_interleaved`.
    """
    times = time_interleaved(
        {"baseline": baseline, "method": method},
        rounds=rounds,
        warmup=warmup,
        min_sample_seconds=min_sample_seconds,
        seed=seed,
    )
    return PairedTime(
        baseline_seconds=times.median("baseline"),
        method_seconds=times.median("method"),
        ratio=times.ratio("method", "baseline"),
        spread=times.interval("method", "baseline"),
        threads=times.threads,
        rounds=rounds,
    )


def time_interleaved(
    works: Mapping[str, Work],
    *,
    rounds: int = 15,
    warmup: int = 2,
    min_sample_seconds: float | int = 2e-3,
    seed: int = 0,
) -> InterleavedTimes:
    """Time several callables in turns.

    Each is first called `warmup` times (at least once, which also tells how many calls make up a sample of
    `min_sample_seconds`). Then come `rounds` rounds; the order rotates by one each round and is reversed
    every other turn through the rotation, so that nobody always runs first or always behind the same
    neighbour. The garbage collector is off meanwhile; CUDA is awaited at the end of every sample, if it is
    in use.

    Raises: ValueError for fewer than two callables, or rounds < 3, warmup < 1, min_sample_seconds < 0.
    """
    if len(works) < 2:
        raise ValueError(f"works has {len(works)} callable; a ratio needs at least two")
    for name, value, least in (("rounds", rounds, 3), ("warmup", warmup, 1)):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    if min_sample_seconds < 0:
        raise ValueError(f"min_sample_seconds={min_sample_seconds} must not be negative")
    names = list(works)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    try:
        inner = {name: _calls_per_sample(work, warmup, min_sample_seconds) for name, work in works.items()}
        gc.collect()
        gc.disable()
        for turn in range(rounds):
            for name in _order(names, turn):
                seconds[name].append(_sample(works[name], inner[name]) / inner[name])
    finally:
        if collecting:
            gc.enable()
    return InterleavedTimes(
        seconds={name: tuple(values) for name, values in seconds.items()},
        inner=inner,
        threads=torch.get_num_threads(),
        seed=seed,
    )


def _order(names: list[str], turn: int) -> list[str]:
    """Rotate by one each turn; after a whole rotation go through the rotations backwards."""
    cycle, shift = divmod(turn, len(names))
    rotated = names[shift:] + names[:shift]
    return rotated[::-1] if cycle % 2 else rotated


def _calls_per_sample(work: Work, warmup: int, min_sample_seconds: float | int) -> int:
    """How many calls last `min_sample_seconds`, judged after the warm-up."""
    for _ in range(warmup):
        once = _sample(work, 1)
    inner = 1
    elapsed = once
    while elapsed < min_sample_seconds and inner < _MAX_INNER:
        guess = math.ceil(1.2 * inner * min_sample_seconds / max(elapsed, 1e-9))
        inner = min(max(guess, inner + 1), 100 * inner, _MAX_INNER)
        elapsed = _sample(work, inner)
    return inner


def _sample(work: Work, calls: int) -> float:
    """Seconds that `calls` calls take together."""
    start = time.perf_counter()
    for _ in range(calls):
        work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start
