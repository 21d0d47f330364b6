"""One recipe for every weight, so that the file meets a budget with the least predicted loss.

A multiple-choice knapsack: minimise Σ loss[w, c(w)] subject to Σ bytes[w, c(w)] ≤ budget with one choice c(w)
for every weight w, solved as an integer program to a proven gap.
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


@dataclass(frozen=True)
class Choice:
    """An option for each weight, by slot name; their bytes and predicted loss (nats a token) added up.

    gap: proven bound on the distance to the least loss possible, relative.
    """

    options: dict[str, Option]
    nbytes: int
    loss: float
    gap: float


class BudgetTooSmall(ValueError):
    """No choice fits; `smallest_bytes` is what the smallest one takes."""

    def __init__(self, budget_bytes: int, smallest_bytes: int) -> None:
        super().__init__(f"{budget_bytes} bytes cannot be met: the smallest choice takes {smallest_bytes}.")
        self.budget_bytes, self.smallest_bytes = budget_bytes, smallest_bytes


def solve(options: Mapping[str, Sequence[Option]], budget_bytes: int) -> Choice:
    """The choice of least loss within `budget_bytes`; deterministic.

    Raises: BudgetTooSmall, a ValueError, if none fits; ValueError if a weight has no option or a loss is
    not finite; RuntimeError if the solver finds nothing in time.
    """
    _check(options)
    smallest_bytes = sum(min(o.nbytes for o in own) for own in options.values())
    if budget_bytes < smallest_bytes:
        raise BudgetTooSmall(budget_bytes, smallest_bytes)
    reduced = {name: undominated(own) for name, own in options.items()}
    flat = [(name, option) for name, own in reduced.items() for option in own]
    if not flat:
        return Choice({}, 0, 0.0, 0.0)
    losses = np.array([option.loss for _, option in flat])
    sizes = np.array([option.nbytes for _, option in flat], dtype=float)
    row_of = {name: row for row, name in enumerate(reduced)}
    rows = np.array([row_of[name] for name, _ in flat])
    one_each = csr_array((np.ones(len(flat)), (rows, np.arange(len(flat)))), shape=(len(reduced), len(flat)))
    unit = max(budget_bytes, 1)
    scale = max(losses.max(), np.finfo(float).tiny)
    with _quiet_stdout():
        found = milp(
            losses / scale,
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(sizes[None] / unit, -np.inf, budget_bytes / unit),
            ],
            options={"mip_rel_gap": RELATIVE_GAP, "time_limit": TIME_LIMIT_SECONDS},
        )
    if found.x is None:
        raise RuntimeError(f"the integer program was not solved: {found.message}")
    chosen = {name: option for (name, option), taken in zip(flat, found.x, strict=True) if taken > 0.5}
    choice = _within(chosen, reduced, budget_bytes)
    gap = float(found.mip_gap) if found.mip_gap is not None else 0.0
    return Choice(choice, sum(o.nbytes for o in choice.values()), sum(o.loss for o in choice.values()), gap)


def naive_solve(options: Mapping[str, Sequence[Option]], budget_bytes: int) -> float:
    """The least loss by trying every combination: the meaning of `solve`. Infinite if none fits."""
    totals = [(0, 0.0)]
    for own in options.values():
        totals = [(size + o.nbytes, loss + o.loss) for size, loss in totals for o in own]
    return min((loss for size, loss in totals if size <= budget_bytes), default=float("inf"))


def undominated(options: Sequence[Option]) -> list[Option]:
    """The options that no other beats in bytes and loss at once, from small to large."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.nbytes, o.loss)):
        if not kept or option.loss < kept[-1].loss:
            kept.append(option)
    return kept


def _within(
    chosen: dict[str, Option], options: Mapping[str, Sequence[Option]], budget_bytes: int
) -> dict[str, Option]:
    """The solver's answer in whole bytes: its tolerance may exceed the budget by a few, which is undone."""
    chosen = dict(chosen)
    while (excess := sum(o.nbytes for o in chosen.values()) - budget_bytes) > 0:
        steps = [
            (
                (option.loss - chosen[name].loss) / min(chosen[name].nbytes - option.nbytes, excess),
                name,
                option,
            )
            for name, own in options.items()
            for option in own
            if option.nbytes < chosen[name].nbytes
        ]
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


def _check(options: Mapping[str, Sequence[Option]]) -> None:
    for name, own in options.items():
        if not own:
            raise ValueError(f"{name!r} has no option; leave it out of the problem.")
        for option in own:
            if not np.isfinite(option.loss):
                raise ValueError(f"the predicted loss of {option.recipe} in {name!r} is {option.loss}.")
