"""How the products of a matrix product are added up: where the roundings fall.

The three ways differ in every low format; hardware does any of them.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from shoestring.numbers.arithmetic import Arithmetic
from shoestring.numbers.array_namespace import namespace_of


@runtime_checkable
class Accumulation(Protocol):
    """Multiplies (…, m, k) by (…, k, n) arrays of numbers of the format."""

    def matmul(self, a: Any, b: Any, arithmetic: Arithmetic) -> Any: ...


@dataclass(frozen=True)
class InCarrier:
    """Sum in the carrier, round once at the end: a wide accumulator."""

    def matmul(self, a: Any, b: Any, arithmetic: Arithmetic) -> Any:
        return arithmetic.round(a @ b)


@dataclass(frozen=True)
class EveryStep:
    """s = rd(s + rd(a·b)), in the order of the index: separate multiplier and adder."""

    def matmul(self, a: Any, b: Any, arithmetic: Arithmetic) -> Any:
        total = _zeros(a, b)
        for k in range(a.shape[-1]):
            product = arithmetic.multiply(a[..., :, k, None], b[..., k, None, :])
            total = arithmetic.add(total, product)
        return total


@dataclass(frozen=True)
class EveryFusedStep:
    """s = rd(s + a·b): a fused multiply-add unit of the format."""

    def matmul(self, a: Any, b: Any, arithmetic: Arithmetic) -> Any:
        total = _zeros(a, b)
        for k in range(a.shape[-1]):
            total = arithmetic.fma(a[..., :, k, None], b[..., k, None, :], total)
        return total


@dataclass(frozen=True)
class EveryChunk:
    """Chunks of `size` products are summed in the carrier and rounded; s = rd(s + chunk): a tensor core.

    Raises: ValueError for size < 1.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size}: a chunk holds at least 1 product")

    def matmul(self, a: Any, b: Any, arithmetic: Arithmetic) -> Any:
        total = _zeros(a, b)
        for start in range(0, a.shape[-1], self.size):
            stop = start + self.size
            chunk = arithmetic.round(a[..., :, start:stop] @ b[..., start:stop, :])
            total = arithmetic.add(total, chunk)
        return total


def matmul(a: Any, b: Any, arithmetic: Arithmetic, accumulate: Accumulation) -> Any:
    """`a @ b` for arrays of one or more axes, summed up as `accumulate` says.

    Raises: ValueError for scalars or sizes that do not match.
    """
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError("a matrix product needs arrays with at least one axis; use * for scalars")
    inner = b.shape[0] if b.ndim == 1 else b.shape[-2]
    if a.shape[-1] != inner:
        raise ValueError(
            f"a of shape {tuple(a.shape)} and b of shape {tuple(b.shape)}: the last axis of a and the "
            f"{'only' if b.ndim == 1 else 'second last'} one of b must agree"
        )
    matrix_a = a[None, :] if a.ndim == 1 else a
    matrix_b = b[:, None] if b.ndim == 1 else b
    product = accumulate.matmul(matrix_a, matrix_b, arithmetic)
    if b.ndim == 1:
        product = product[..., 0]
    if a.ndim == 1:
        product = product[..., 0] if b.ndim == 1 else product[..., 0, :]
    return product


def _zeros(a: Any, b: Any) -> Any:
    """Zeros of the shape, dtype and library of the product."""
    xp = namespace_of(a)
    return xp.zeros_like((a[..., :, :1] * 0) @ (b[..., :1, :] * 0)) if a.shape[-1] else a @ b
