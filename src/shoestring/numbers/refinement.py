"""Iterative refinement: factor in a low format, residual and update in float64.

Plain refinement converges while the low format's unit roundoff times the condition number is well below 1;
solving the correction by GMRES, preconditioned with the same factors, reaches far beyond that.

Source: Carson and Higham 2018, "Accelerating the Solution of Linear Systems by Iterative Refinement in Three
Precisions", algorithms 1.1 and 2.1 and table 7.1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shoestring.numbers.arithmetic import Arithmetic
from shoestring.numbers.krylov import Solution, gmres
from shoestring.numbers.linear_algebra import LU, Matrix, Vector, backward_error, lu_factor

FLOAT64 = Arithmetic(None)


@dataclass(frozen=True)
class Refinement:
    """A refined solution: `start` is the pure low-format one, `inner_steps` counts GMRES steps."""

    start: Vector
    solution: Solution
    inner_steps: int = 0


def iterative_refinement(
    a: Matrix, b: Vector, low: Arithmetic, *, tolerance: float, max_steps: int = 20
) -> Refinement:
    """Solve A·x = b: LU and all its solves in `low`, residual and update in float64.

    Stops when the normwise backward error is at most `tolerance`, stops falling, or after `max_steps`. The
    residual is scaled to ∞-norm 1 before it is solved for, so that a small one does not vanish in `low`.
    `errors` of the solution are backward errors.

    Raises: ValueError as `lu_factor`.
    """
    factors = lu_factor(a, low)
    start = _low_solve(factors, b, low)
    solution = _refine(a, b, start, lambda r: _low_solve(factors, r, low), tolerance, max_steps)
    return Refinement(start, solution)


def gmres_refinement(
    a: Matrix,
    b: Vector,
    low: Arithmetic,
    *,
    tolerance: float,
    max_steps: int = 10,
    inner_tolerance: float = 1e-6,
    inner_max_steps: int = 100,
) -> Refinement:
    """GMRES-IR: LU in `low`; each correction by GMRES in float64, left-preconditioned with those factors.

    Arguments, result and errors as in `iterative_refinement`.
    """
    factors = lu_factor(a, low)
    inner_steps = 0

    def correct(residual: Vector) -> Vector:
        nonlocal inner_steps
        found = gmres(
            a,
            residual,
            tolerance=inner_tolerance,
            max_steps=inner_max_steps,
            precondition=lambda v: factors.solve(v, FLOAT64),
        )
        inner_steps += found.steps
        return found.x

    start = _low_solve(factors, b, low)
    solution = _refine(a, b, start, correct, tolerance, max_steps)
    return Refinement(start, solution, inner_steps)


def _low_solve(factors: LU, b: Vector, low: Arithmetic) -> Vector:
    scale = np.abs(b).max()
    if scale == 0:
        return np.zeros_like(b)
    return scale * factors.solve(b / scale, low)


def _refine(
    a: Matrix,
    b: Vector,
    x: Vector,
    correct: Callable[[Vector], Vector],
    tolerance: float,
    max_steps: int,
) -> Solution:
    """x + correction, until the backward error is small or a step no longer lowers it."""
    if not np.isfinite(x).all():
        x = np.zeros_like(b)
    errors = [backward_error(a, x, b)]
    while errors[-1] > tolerance and len(errors) <= max_steps:
        better = x + correct(b - a @ x)
        error = backward_error(a, better, b)
        if not error < errors[-1]:
            break
        errors.append(error)
        x = better
    return Solution(x, tuple(errors), errors[-1] <= tolerance)
