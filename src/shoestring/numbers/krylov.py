"""GMRES with left preconditioning, every operation of the iteration in a given arithmetic.

Source: Saad and Schultz 1986, "GMRES: A Generalized Minimal Residual Algorithm", algorithm 3 (modified
Gram-Schmidt, Givens rotations).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from shoestring.numbers.arithmetic import Arithmetic
from shoestring.numbers.linear_algebra import Matrix, Vector, backward_substitution, dot, multiply, norm

Operator = Callable[[Vector], Vector]


@dataclass(frozen=True)
class Solution:
    """What an iterative solver found. `errors` is its measure of the error, before and after each step."""

    x: Vector
    errors: tuple[float, ...]
    converged: bool

    @property
    def steps(self) -> int:
        return len(self.errors) - 1


def gmres(
    a: Matrix | Operator,
    b: Vector,
    *,
    tolerance: float,
    max_steps: int,
    arithmetic: Arithmetic | None = None,
    precondition: Operator | None = None,
) -> Solution:
    """x that minimises ‖M⁻¹(b − A·x)‖ over the Krylov space, from x = 0, without restarts.

    `a`: a matrix, or a function that applies it; `precondition` applies M⁻¹. `errors` are the relative
    preconditioned residual norms ‖M⁻¹(b − A·x)‖ / ‖M⁻¹b‖ that the iteration itself computes. Ends when one
    is at most `tolerance`, after `max_steps`, or when the Krylov space is exhausted.

    Raises: ValueError for max_steps < 1.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps} must be at least 1")
    ops = Arithmetic(None) if arithmetic is None else arithmetic
    ops.check(b.dtype)
    apply_a = a if callable(a) else _matrix_operator(np.asarray(ops.round(a)), ops)
    apply = apply_a if precondition is None else lambda v: precondition(apply_a(v))
    start = np.asarray(ops.round(b)) if precondition is None else precondition(b)
    beta = norm(start, ops)
    if beta == 0:
        return Solution(np.zeros_like(b), (0.0,), True)
    krylov = _Krylov(start, beta, ops)
    errors = [1.0]
    while krylov.size < max_steps and errors[-1] > tolerance and not krylov.exhausted:
        krylov.extend(apply)
        errors.append(krylov.residual / beta)
    return Solution(krylov.minimiser(), tuple(errors), errors[-1] <= tolerance)


def _matrix_operator(a: Matrix, ops: Arithmetic) -> Operator:
    return lambda v: multiply(a, v, ops)


class _Krylov:
    """An orthonormal basis, and the least-squares problem in it kept triangular by rotations."""

    def __init__(self, start: Vector, beta: float, ops: Arithmetic) -> None:
        self.ops = ops
        self.basis = [ops.divide(start, np.full_like(start, beta))]
        self.columns: list[Float[np.ndarray, ...]] = []
        self.rotations: list[tuple[float, float]] = []
        self.rhs = [beta]
        self.exhausted = False

    @property
    def size(self) -> int:
        return len(self.columns)

    @property
    def residual(self) -> float:
        return abs(self.rhs[-1])

    def extend(self, apply: Operator) -> None:
        """One Arnoldi step, then the rotation that removes its last entry."""
        ops, w = self.ops, apply(self.basis[-1])
        column = []
        for v in self.basis:
            column.append(dot(v, w, ops))
            w = ops.subtract(w, ops.multiply(v, np.full_like(v, column[-1])))
        length = norm(w, ops)
        for i, (cosine, sine) in enumerate(self.rotations):
            column[i : i + 2] = self._rotate(cosine, sine, column[i], column[i + 1])
        cosine, sine, radius = self._rotation(column[-1], length)
        if radius == 0:  # the operator is singular on the space: the column cannot lower the residual
            self.exhausted = True
            return
        self.rotations.append((cosine, sine))
        column[-1] = radius
        self.columns.append(np.array(column, w.dtype))
        self.rhs[-1:] = self._rotate(cosine, sine, self.rhs[-1], 0.0)
        self.exhausted = length == 0 or not np.isfinite(length)
        if not self.exhausted:
            self.basis.append(ops.divide(w, np.full_like(w, length)))

    def minimiser(self) -> Vector:
        """Σ yᵢ·vᵢ, where y solves the triangular system."""
        n = self.size
        triangle = np.zeros((n, n), self.basis[0].dtype)
        for j, column in enumerate(self.columns):
            triangle[: j + 1, j] = column
        y = backward_substitution(triangle, np.array(self.rhs[:n], triangle.dtype), self.ops)
        x = np.zeros_like(self.basis[0])
        for weight, v in zip(y, self.basis, strict=False):
            x = self.ops.add(x, self.ops.multiply(v, np.full_like(v, weight)))
        return x

    def _rotation(self, a: float, b: float) -> tuple[float, float, float]:
        """(cosine, sine, radius) that turn (a, b) into (radius, 0)."""
        ops = self.ops
        pair = np.array([a, b], self.basis[0].dtype)
        radius = norm(pair, ops)
        if radius == 0:
            return 1.0, 0.0, radius
        cosine, sine = ops.divide(pair, np.full_like(pair, radius))
        return float(cosine), float(sine), radius

    def _rotate(self, cosine: float, sine: float, a: float, b: float) -> list[float]:
        """(c·a + s·b, c·b − s·a)."""
        ops = self.ops
        left, right, turned, other = (
            ops.multiply(np.array([x], self.basis[0].dtype), np.array([y], self.basis[0].dtype))
            for x, y in ((cosine, a), (sine, b), (cosine, b), (sine, a))
        )
        return [float(ops.add(left, right)[0]), float(ops.subtract(turned, other)[0])]
