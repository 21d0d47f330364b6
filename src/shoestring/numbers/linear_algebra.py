"""Dense factorisations and triangular solves in which every operation is rounded to a number format.

All take an `Arithmetic`; `Arithmetic(None)` is the carrier's own, so the same code is the float64 reference.

Source: Higham 2002, "Accuracy and Stability of Numerical Algorithms", algorithms 8.1, 9.2 and 10.2.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from shoestring.numbers.accumulation import EveryStep, matmul
from shoestring.numbers.arithmetic import Arithmetic

Matrix = Float[np.ndarray, "n n"]
Vector = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class LU:
    """A[permutation] = L·U: unit lower L below the diagonal of `factors`, upper U on and above it."""

    factors: Matrix
    permutation: Int[np.ndarray, " n"]

    def solve(self, b: Vector, arithmetic: Arithmetic) -> Vector:
        """x with L·U·x = b[permutation], every operation rounded."""
        y = forward_substitution(self.factors, b[self.permutation], arithmetic, unit_diagonal=True)
        return backward_substitution(self.factors, y, arithmetic)


def lu_factor(a: Float[np.ndarray, "rows cols"], arithmetic: Arithmetic) -> LU:
    """LU factorisation with partial pivoting; `a` is rounded first, then every operation.

    Raises: ValueError for a matrix that is not square, is singular in the format, or overflows it.
    """
    factors = _rounded_square(a, arithmetic)
    n = len(factors)
    permutation = np.arange(n)
    for k in range(n):
        pivot = k + int(np.argmax(np.abs(factors[k:, k])))
        if factors[pivot, k] == 0:
            raise ValueError(f"column {k} has no pivot: the matrix is singular in this format")
        if pivot != k:
            factors[[k, pivot]] = factors[[pivot, k]]
            permutation[[k, pivot]] = permutation[[pivot, k]]
        factors[k + 1 :, k] = arithmetic.divide(factors[k + 1 :, k], factors[k, k : k + 1])
        update = arithmetic.multiply(factors[k + 1 :, k, None], factors[k, None, k + 1 :])
        factors[k + 1 :, k + 1 :] = arithmetic.subtract(factors[k + 1 :, k + 1 :], update)
    _check_finite(factors, "the LU factors")
    return LU(factors, permutation)


def cholesky(a: Float[np.ndarray, "rows cols"], arithmetic: Arithmetic) -> Matrix:
    """Lower L with L·Lᵀ = A; the lower triangle of `a` is read and rounded first, then every operation.

    Raises: ValueError for a matrix that is not square, not positive definite in the format, or overflows it.
    """
    lower = np.tril(_rounded_square(a, arithmetic))
    for k in range(len(lower)):
        if not lower[k, k] > 0:
            raise ValueError(
                f"pivot {k} is {lower[k, k]:g}: the matrix is not positive definite in this format"
            )
        lower[k, k] = arithmetic.sqrt(lower[k : k + 1, k])[0]
        lower[k + 1 :, k] = arithmetic.divide(lower[k + 1 :, k], lower[k, k : k + 1])
        update = arithmetic.multiply(lower[k + 1 :, k, None], lower[None, k + 1 :, k])
        lower[k + 1 :, k + 1 :] = np.tril(arithmetic.subtract(lower[k + 1 :, k + 1 :], update))
    _check_finite(lower, "the Cholesky factor")
    return lower


def forward_substitution(
    lower: Matrix, b: Vector, arithmetic: Arithmetic, *, unit_diagonal: bool = False
) -> Vector:
    """x with L·x = b from the lower triangle; `unit_diagonal`: the diagonal is 1 and not stored.

    Raises: ValueError for a zero on the diagonal.
    """
    if not unit_diagonal:
        _check_diagonal(lower)
    x = np.array(arithmetic.round(b))
    for k in range(len(x)):
        if not unit_diagonal:
            x[k : k + 1] = arithmetic.divide(x[k : k + 1], lower[k, k : k + 1])
        x[k + 1 :] = arithmetic.subtract(x[k + 1 :], arithmetic.multiply(lower[k + 1 :, k], x[k : k + 1]))
    return x


def backward_substitution(upper: Matrix, b: Vector, arithmetic: Arithmetic) -> Vector:
    """x with U·x = b from the upper triangle. Raises: ValueError for a zero on the diagonal."""
    _check_diagonal(upper)
    x = np.array(arithmetic.round(b))
    for k in reversed(range(len(x))):
        x[k : k + 1] = arithmetic.divide(x[k : k + 1], upper[k, k : k + 1])
        x[:k] = arithmetic.subtract(x[:k], arithmetic.multiply(upper[:k, k], x[k : k + 1]))
    return x


def multiply(a: Float[np.ndarray, "m n"], x: Vector, arithmetic: Arithmetic) -> Float[np.ndarray, " m"]:
    """A·x, every product and every sum rounded."""
    if arithmetic.rounder is None:
        return a @ x
    return matmul(a, x, arithmetic, EveryStep())


def dot(x: Vector, y: Vector, arithmetic: Arithmetic) -> float:
    """xᵀy, every product and every sum rounded."""
    return float(x @ y if arithmetic.rounder is None else matmul(x, y, arithmetic, EveryStep()))


def norm(x: Vector, arithmetic: Arithmetic) -> float:
    """The 2-norm, every operation rounded; x is not scaled, so squares may overflow a small format."""
    return float(arithmetic.sqrt(np.array([dot(x, x, arithmetic)], x.dtype))[0])


def backward_error(a: Matrix, x: Vector, b: Vector) -> float:
    """Normwise: ‖b − A·x‖ / (‖A‖·‖x‖ + ‖b‖) in the ∞-norm, in float64; NaN where x is not finite.

    Source: Higham 2002, theorem 7.1 (Rigal and Gaches).
    """
    if not np.isfinite(x).all():
        return float("nan")
    residual = np.abs(b - a @ x).max()
    return float(residual / (np.abs(a).sum(1).max() * np.abs(x).max() + np.abs(b).max()))


def _rounded_square(a: Float[np.ndarray, "rows cols"], arithmetic: Arithmetic) -> Matrix:
    if a.shape[0] != a.shape[1]:
        raise ValueError(f"a matrix of shape {a.shape} is not square")
    arithmetic.check(a.dtype)
    rounded = np.array(arithmetic.round(a))
    _check_finite(rounded, "the matrix")
    return rounded


def _check_finite(a: Float[np.ndarray, "n n"], what: str) -> None:
    if not np.isfinite(a).all():
        raise ValueError(f"{what} overflow this format or hold a NaN; scale the matrix to entries about 1")


def _check_diagonal(a: Matrix) -> None:
    if (zeros := np.flatnonzero(np.diagonal(a) == 0)).size:
        raise ValueError(f"diagonal entry {zeros[0]} is 0: the triangle is singular")
