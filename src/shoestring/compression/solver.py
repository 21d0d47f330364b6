"""One recipe for every weight, so that file and speed meet a budget with the least predicted loss.

A multiple-choice knapsack: minimise Σ loss[w, c(w)] subject to Σ bytes[w, c(w)] ≤ budget and, where a speed
is asked for, Σ seconds[w, c(w)] ≤ what a token may take, with one choice c(w) for every weight w, solved as
an integer program to a proven gap.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from shoestring.compression.profile import Option

RELATIVE_GAP = 1e-4
"""How far the predicted loss may be from the proven optimum."""

TIME_LIMIT_SECONDS = 60.0

SECONDS_TOLERANCE = 1e-6
"""Relative, of the solver: far below what a clock tells of a token. Bytes are kept exactly."""


@dataclass(frozen=True)
class Choice:
    """An option for each weight, by slot name; their bytes and predicted loss (nats a token) added up.

    gap: proven bound on the distance to the least loss possible, relative.
    """

    options: dict[str, Option]
    nbytes: int
    loss: float
    gap: float

    @property
    def seconds(self) -> float:
        """Of all products of one token, as predicted; 0 where no speed was asked for."""
        return sum(option.seconds for option in self.options.values())


_INFEASIBLE = 2
"""Of `scipy.optimize.milp`."""


class BudgetTooSmall(ValueError):
    """No choice fits; `smallest_bytes` is what the smallest one takes."""

    def __init__(self, budget_bytes: int, smallest_bytes: int) -> None:
        super().__init__(f"{budget_bytes} bytes cannot be met: the smallest choice takes {smallest_bytes}.")
        self.budget_bytes, self.smallest_bytes = budget_bytes, smallest_bytes


class TooSlow(ValueError):
    """No choice within the bytes is fast enough; `fastest_seconds` is what the fastest takes for a token."""

    def __init__(self, budget_seconds: float, fastest_seconds: float) -> None:
        super().__init__(
            f"{budget_seconds:.3g} seconds a token cannot be met: the fastest choice takes "
            f"{fastest_seconds:.3g}."
        )
        self.budget_seconds, self.fastest_seconds = budget_seconds, fastest_seconds


def solve(
    options: Mapping[str, Sequence[Option]], budget_bytes: int | None, budget_seconds: float | None = None
) -> Choice:
    """The choice of least loss within `budget_bytes` and `budget_seconds` (None: no limit); deterministic.

    Raises: BudgetTooSmall or TooSlow, ValueErrors, if none fits; ValueError if a weight has no option or a
    loss is not finite; RuntimeError if the solver finds nothing in time.
    """
    _check(options)
    _check_bytes(options, budget_bytes)
    if budget_seconds is None:
        reduced = {name: undominated(own) for name, own in options.items()}
    else:
        reduced = {name: unbeaten(own) for name, own in options.items()}
    if not any(reduced.values()):
        return Choice({}, 0, 0.0, 0.0)
    found = None
    if budget_seconds is None or budget_seconds > 0:
        found = _program(
            reduced, [o.loss for own in reduced.values() for o in own], budget_bytes, budget_seconds
        )
    if found is None:
        assert budget_seconds is not None
        raise TooSlow(budget_seconds, fastest(options, budget_bytes).seconds)
    chosen, gap = found
    if budget_bytes is not None:
        chosen = _within(chosen, reduced, budget_bytes, budget_seconds)
    return _choice(chosen, gap)


def fastest(options: Mapping[str, Sequence[Option]], budget_bytes: int | None) -> Choice:
    """The choice of fewest seconds within `budget_bytes`, of those of least loss as far as it can be told.

    Raises: as `solve`.
    """
    _check(options)
    _check_bytes(options, budget_bytes)
    reduced = {name: unbeaten(own) for name, own in options.items()}
    everything = [o for own in reduced.values() for o in own]
    if not everything:
        return Choice({}, 0, 0.0, 0.0)
    # A hair of the loss decides between choices that take equally long.
    hair = 1e-6 * max(o.seconds for o in everything) / max(max(o.loss for o in everything), 1e-30)
    found = _program(reduced, [o.seconds + hair * o.loss for o in everything], budget_bytes, None)
    assert found is not None
    chosen, gap = found
    return _choice(chosen if budget_bytes is None else _within(chosen, reduced, budget_bytes, None), gap)


def _program(
    options: Mapping[str, Sequence[Option]],
    costs: Sequence[float],
    budget_bytes: int | None,
    budget_seconds: float | None,
) -> tuple[dict[str, Option], float] | None:
    """The cheapest choice by these costs, to the solver's tolerance, and its gap; None if there is none."""
    flat = [(name, option) for name, own in options.items() for option in own]
    row_of = {name: row for row, name in enumerate(options)}
    rows = np.array([row_of[name] for name, _ in flat])
    one_each = csr_array((np.ones(len(flat)), (rows, np.arange(len(flat)))), shape=(len(options), len(flat)))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for amounts, budget in (
        ([o.nbytes for _, o in flat], budget_bytes),
        ([o.seconds for _, o in flat], budget_seconds),
    ):
        if budget is not None:
            unit = budget or 1
            constraints.append(
                LinearConstraint(np.array(amounts, dtype=float)[None] / unit, -np.inf, budget / unit)
            )
    cost = np.array(costs, dtype=float)
    with _quiet_stdout():
        found = milp(
            cost / max(cost.max(), np.finfo(float).tiny),
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": RELATIVE_GAP, "time_limit": TIME_LIMIT_SECONDS},
        )
    if found.x is None and found.status == _INFEASIBLE and budget_seconds is not None:
        return None
    if found.x is None:
        raise RuntimeError(f"the integer program was not solved: {found.message}")
    chosen = {name: option for (name, option), taken in zip(flat, found.x, strict=True) if taken > 0.5}
    return chosen, float(found.mip_gap) if found.mip_gap is not None else 0.0


def _choice(chosen: dict[str, Option], gap: float) -> Choice:
    own = chosen.values()
    return Choice(chosen, sum(o.nbytes for o in own), sum(o.loss for o in own), gap)


def naive_solve(
    options: Mapping[str, Sequence[Option]], budget_bytes: int, budget_seconds: float = float("inf")
) -> float:
    """The least loss by trying every combination: the meaning of `solve`. Infinite if none fits."""
    totals = [(0, 0.0, 0.0)]
    for own in options.values():
        totals = [(n + o.nbytes, s + o.seconds, loss + o.loss) for n, s, loss in totals for o in own]
    fitting = (loss for n, s, loss in totals if n <= budget_bytes and s <= budget_seconds)
    return min(fitting, default=float("inf"))


def undominated(options: Sequence[Option]) -> list[Option]:
    """The options that no other beats in bytes and loss at once, from small to large."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.nbytes, o.loss)):
        if not kept or option.loss < kept[-1].loss:
            kept.append(option)
    return kept


def unbeaten(options: Sequence[Option]) -> list[Option]:
    """The options that no other beats in bytes, seconds and loss at once, from small to large."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.nbytes, o.loss, o.seconds)):
        if not any(k.loss <= option.loss and k.seconds <= option.seconds for k in kept):
            kept.append(option)
    return kept


def _within(
    chosen: dict[str, Option],
    options: Mapping[str, Sequence[Option]],
    budget_bytes: int,
    budget_seconds: float | None,
) -> dict[str, Option]:
    """The solver's answer in whole bytes: its tolerance may exceed the budget by a few, which is undone."""
    chosen = dict(chosen)
    while (excess := sum(o.nbytes for o in chosen.values()) - budget_bytes) > 0:
        limit = np.inf if budget_seconds is None else budget_seconds * (1 + SECONDS_TOLERANCE)
        seconds = sum(o.seconds for o in chosen.values())
        steps = [
            (
                (option.loss - chosen[name].loss) / min(chosen[name].nbytes - option.nbytes, excess),
                name,
                option,
            )
            for name, own in options.items()
            for option in own
            if option.nbytes < chosen[name].nbytes
            and seconds - chosen[name].seconds + option.seconds <= limit
        ]
        if not steps:  # only by giving up a byte elsewhere
            return solve(options, budget_bytes - excess, budget_seconds).options
        _, name, option = min(steps, key=lambda step: step[0])
        chosen[name] = option
    return chosen


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Keep what HiGHS prints past its own log option out of the process's stdout, where results go.

    It prints through C's buffer, which is emptied before and after, lest lines move across the border.
    """
    flush = ctypes.CDLL(None).fflush
    try:
        kept = os.dup(1)
    except OSError:  # stdout was closed: nothing can go wrong
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        flush(None)
        os.dup2(nowhere, 1)
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _check_bytes(options: Mapping[str, Sequence[Option]], budget_bytes: int | None) -> None:
    smallest_bytes = sum(min(o.nbytes for o in own) for own in options.values())
    if budget_bytes is not None and budget_bytes < smallest_bytes:
        raise BudgetTooSmall(budget_bytes, smallest_bytes)


def _check(options: Mapping[str, Sequence[Option]]) -> None:
    for name, own in options.items():
        if not own:
            raise ValueError(f"{name!r} has no option; leave it out of the problem.")
        for option in own:
            if not np.isfinite(option.loss):
                raise ValueError(f"the predicted loss of {option.recipe} in {name!r} is {option.loss}.")
