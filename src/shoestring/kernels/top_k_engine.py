"""The k largest of a sequence by quick-select and a filter, as a pipeline of comparators, with its cycles.

A pivot is drawn; what is above and what is below it go to two buffers, each packed by a zero eliminator; the
buffer that holds the k-th largest is the next sequence. A last pass keeps what is above the k-th largest and
the earliest of what equals it. O(n / comparators) cycles on average, O(n² / comparators) at worst.

Source: Wang et al. 2021, "SpAtten: Efficient Sparse Attention Architecture with Cascade Token and Head
Pruning", section IV-B; the cycles of a pass are those of its hardware description.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Shaped

COMPARATORS = 16
"""Comparators of the published engine."""
PASS_CYCLES = 3
"""Cycles of a pass beside one for each row of comparators: draw, compare, decide."""


@dataclass(frozen=True)
class Kth:
    """The k-th largest value, how many values are strictly greater, and the cycles it took to find it."""

    value: float
    greater: int
    cycles: int


@dataclass(frozen=True)
class TopK:
    """The k largest: their places, ascending, and the cycles of the search and of the filter."""

    index: Int[np.ndarray, " k"]
    kth: Kth
    filter_cycles: int

    @property
    def cycles(self) -> int:
        """All cycles."""
        return self.kth.cycles + self.filter_cycles


def kth_largest(
    x: Shaped[np.ndarray, " n"],
    k: int,
    *,
    comparators: int = COMPARATORS,
    seed: int | np.random.Generator = 0,
) -> Kth:
    """The k-th largest of `x` by quick-select; pivots are drawn from `seed`.

    Raises: ValueError for k outside 1..n or comparators below 1; FloatingPointError for NaN.
    """
    _check(x, k, comparators)
    draws = np.random.default_rng(seed)
    greater, cycles = 0, 0
    while True:
        pivot = x[draws.integers(len(x))]
        above = x[x > pivot]
        # Counted, not only the pivot itself: with many equal values the search would never end.
        equal = int((x == pivot).sum())
        cycles += -(-len(x) // comparators) + PASS_CYCLES
        if len(above) < k <= len(above) + equal:
            return Kth(float(pivot), greater + len(above), cycles)
        if k <= len(above):
            x = above
        else:
            greater, k, x = greater + len(above) + equal, k - len(above) - equal, x[x < pivot]


def top_k_engine(
    x: Shaped[np.ndarray, " n"],
    k: int,
    *,
    comparators: int = COMPARATORS,
    seed: int | np.random.Generator = 0,
) -> TopK:
    """Places of the k largest of `x` in their order; of equal ones the earliest. Raises: as `kth_largest`."""
    kth = kth_largest(x, k, comparators=comparators, seed=seed)
    equal = x == kth.value
    kept = (x > kth.value) | (equal & (np.cumsum(equal) <= k - kth.greater))
    return TopK(np.flatnonzero(kept), kth, -(-len(x) // comparators))


def naive_top_k(x: Shaped[np.ndarray, " n"], k: int) -> list[int]:
    """Places of the k largest by sorting: the meaning of `top_k_engine`."""
    return sorted(sorted(range(len(x)), key=lambda i: (-x[i], i))[:k])


def eliminate_zeros(
    row: Shaped[np.ndarray, " lanes"], keep: Bool[np.ndarray, " lanes"]
) -> tuple[Shaped[np.ndarray, " lanes"], int]:
    """One row of lanes packed to the left in ⌈log2 lanes⌉ stages, and how many are kept.

    A lane must move by the number of dropped lanes before it; stage b moves those by 2^b whose number has
    bit b. A moved item takes its number along, and the lane that it leaves is empty.
    """
    row, full = row.copy(), keep.copy()
    shift = np.cumsum(~keep)
    for stage in range(max(len(row) - 1, 0).bit_length()):
        step = 1 << stage
        # From the left: an item never lands on one that has still to move at this stage.
        for lane in np.flatnonzero(full & (shift >> stage & 1 == 1)):
            row[lane - step], shift[lane - step] = row[lane], shift[lane]
            full[lane - step], full[lane] = True, False
    return row, int(full.sum())


def compact(
    x: Shaped[np.ndarray, " n"], keep: Bool[np.ndarray, " n"], lanes: int = COMPARATORS
) -> Shaped[np.ndarray, " m"]:
    """What is kept of `x`, as the engine packs it: row by row; the realign stage joins partial rows."""
    out, part = [], x[:0]
    for start in range(0, len(x), lanes):
        row, count = eliminate_zeros(x[start : start + lanes], keep[start : start + lanes])
        part = np.concatenate([part, row[:count]])
        if len(part) >= lanes:
            out.append(part[:lanes])
            part = part[lanes:]
    return np.concatenate([*out, part])


def mean_cycles(
    n: int, k: int, *, comparators: int = COMPARATORS, seed: int = 0, trials: int = 200
) -> tuple[float, int]:
    """Cycles of the search, its mean over random sequences of n different values, and of the filter.

    Raises: as `kth_largest`.
    """
    draws = np.random.default_rng(seed)
    found = [
        kth_largest(draws.permutation(n), k, comparators=comparators, seed=draws).cycles
        for _ in range(trials)
    ]
    return float(np.mean(found)), -(-n // comparators)


def bitonic_cycles(n: int, comparators: int = COMPARATORS) -> int:
    """Cycles of a bitonic sorter of the same width: n/2 compare-exchanges in log2(n)·(log2(n) + 1)/2 stages.

    n is rounded up to a power of two. Raises: ValueError for n below 1.
    """
    if n < 1:
        raise ValueError(f"n={n} must be 1 or more.")
    levels = (n - 1).bit_length()
    return levels * (levels + 1) // 2 * -(-(1 << levels) // (2 * comparators))


def _check(x: Shaped[np.ndarray, " n"], k: int, comparators: int) -> None:
    if comparators < 1:
        raise ValueError(f"comparators={comparators} must be 1 or more.")
    if not 1 <= k <= len(x):
        raise ValueError(f"k={k} must be from 1 to the {len(x)} values there are.")
    if np.isnan(x).any():
        raise FloatingPointError("the values hold NaN, which has no place in an order.")
