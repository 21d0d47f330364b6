"""Fixed point in the ring of integers modulo 2^64: what secret shares compute in.

x is held as round(x · 2^f) mod 2^64 in uint64; sums and products wrap around. A product holds 2f fraction
bits until it is truncated.

Source: Mohassel and Zhang 2017, "SecureML", section 4.1 (sharing in a ring, local truncation and its failure
probability |x| · 2^(1−64), x being the integer that is truncated).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.uint64]
RING_BITS = 64
LIMB_BITS, LIMBS = 16, 4
SMALL_MATMUL = 1 << 15
"""Products (rows × inner × columns) up to which numpy's own integer loop is the faster one."""


@dataclass(frozen=True)
class RingFormat:
    """Fixed point with `frac_bits` fraction bits. Raises: ValueError for frac_bits outside 1 to 30."""

    frac_bits: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.frac_bits <= 30:
            raise ValueError(f"frac_bits={self.frac_bits}: use 1 to 30, so that a product fits 64 bits.")

    def limit(self, inner: int = 1) -> float:
        """Bound on |x| before the truncation of a product of `inner` terms: 2^(63 − 2f − log2 inner)."""
        return math.ldexp(1.0, RING_BITS - 1 - 2 * self.frac_bits) / max(inner, 1)

    def encode(self, x: Any, *, inner: int = 1) -> Ring:
        """Numbers as ring elements. inner: terms of the longest sum of products they will take part in.

        Raises: ValueError for NaN or infinities; OverflowError for |x| from `limit(inner)` on.
        """
        values = np.asarray(x, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("x holds NaN or infinities, which fixed point has no code for; clean it first.")
        self.check_range(values, inner=inner)
        scaled = np.asarray(np.rint(np.ldexp(values, self.frac_bits)))
        return scaled.astype(np.int64).view(np.uint64)

    def decode(self, r: Ring, *, frac_bits: int | None = None) -> NDArray[np.float64]:
        """Ring elements as numbers. frac_bits: those that `r` has, by default the format's."""
        bits = self.frac_bits if frac_bits is None else frac_bits
        return np.asarray(np.ldexp(np.asarray(r, dtype=np.uint64).view(np.int64).astype(np.float64), -bits))

    def check_range(self, x: NDArray[np.float64], *, inner: int = 1) -> None:
        """Raises: OverflowError where a product of `inner` terms of `x` may leave the ring."""
        worst = float(np.abs(x).max()) if x.size else 0.0
        if worst >= self.limit(inner):
            raise OverflowError(
                f"|x|={worst:.6g} with {self.frac_bits} fraction bits and {inner} terms: must stay below "
                f"{self.limit(inner):.6g}; scale the values down or use fewer frac_bits."
            )


def shift_right(r: Ring, bits: int) -> Ring:
    """Arithmetic shift: floor(r / 2^bits) of the signed value."""
    return (r.view(np.int64) >> np.int64(bits)).view(np.uint64)


def truncate_first(share: Ring, bits: int) -> Ring:
    """The first of two summands of x, so that both truncated ones sum to x / 2^bits within 1."""
    return shift_right(share, bits)


def truncate_second(share: Ring, bits: int) -> Ring:
    """The second of two summands: −((−share) / 2^bits)."""
    return _minus(shift_right(_minus(share), bits))


def ring_matmul(a: Ring, b: Ring) -> Ring:
    """a @ b modulo 2^64, batched as numpy's: exact, through float64 products of 16-bit limbs where large.

    A float64 holds sums of up to 2^21 products of two limbs exactly; longer ones are cut.
    """
    rows, inner, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if math.prod(batch) * rows * inner * columns <= SMALL_MATMUL:
        return naive_ring_matmul(a, b)
    out = np.zeros((*batch, rows, columns), dtype=np.uint64)
    for start in range(0, inner, 1 << 20):
        part = slice(start, start + (1 << 20))
        left, right = _limbs(a[..., part]), _limbs(b[..., part, :])
        for total in range(LIMBS):
            for i in range(total + 1):
                product = (left[i] @ right[total - i]).astype(np.uint64)
                out += product << np.uint64(LIMB_BITS * total)
    return out


def naive_ring_matmul(a: Ring, b: Ring) -> Ring:
    """numpy's integer product, which wraps around: the meaning of `ring_matmul`."""
    return np.matmul(a, b)


def _limbs(x: Ring) -> list[NDArray[np.float64]]:
    mask = np.uint64((1 << LIMB_BITS) - 1)
    return [((x >> np.uint64(LIMB_BITS * i)) & mask).astype(np.float64) for i in range(LIMBS)]


def _minus(x: Ring) -> Ring:
    return np.zeros(1, dtype=np.uint64) - x
