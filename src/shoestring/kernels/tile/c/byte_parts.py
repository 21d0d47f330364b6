"""Narrow codes as unsigned bytes, for instructions that multiply bytes and add up whole numbers.

Every value of most narrow types is a small whole number of units, a unit being a power of two:
value = unit · (Σ factor · byte − surplus). One byte does for integers and for floats of a few binades, two
for some wider ones.
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from shoestring.kernels.tile.types import DataType, cast_table

BYTE = 255
HIGH = 16
"""What the second byte counts: both tables then stay far from their limits."""


@dataclass(frozen=True)
class BytePart:
    """`table`: the byte of every code; `factor`: what one counts."""

    table: UInt8[np.ndarray, " codes"]
    factor: int


@dataclass(frozen=True)
class ByteParts:
    """value = unit · (Σ factor · byte − surplus · factor of the last part)."""

    parts: tuple[BytePart, ...]
    unit: float
    surplus: int

    def values(self) -> Float[np.ndarray, " codes"]:
        """The value of every code, put together again."""
        total = np.sum([part.factor * part.table.astype(np.float64) for part in self.parts], axis=0)
        return (total - self.surplus * self.parts[-1].factor) * self.unit


@functools.lru_cache(maxsize=256)
def byte_parts(dtype: DataType) -> ByteParts | None:
    """The bytes of a type's codes; None for one with special codes, or whose values span too many units."""
    values = cast_table(dtype).astype(np.float64)
    if not np.isfinite(values).all():
        return None
    unit = _unit(values)
    if np.abs(values).max() > BYTE * HIGH * unit:
        return None
    whole = (values / unit).astype(np.int64)
    surplus = max(-int(whole.min()), 0)
    if int(whole.max()) + surplus <= BYTE:
        return ByteParts((BytePart((whole + surplus).astype(np.uint8), 1),), unit, surplus)
    surplus = -(-surplus // HIGH)
    high, low = np.divmod(whole + surplus * HIGH, HIGH)
    if int(high.max()) > BYTE:
        return None
    parts = BytePart(low.astype(np.uint8), 1), BytePart(high.astype(np.uint8), HIGH)
    return ByteParts(parts, unit, surplus)


def _unit(values: Float[np.ndarray, " codes"]) -> float:
    """The largest power of two that divides all values."""
    fraction, exponent = np.frexp(values[values != 0])
    significand = np.abs(fraction * 2.0**53).astype(np.int64)
    lowest = significand & -significand
    return float(2.0 ** (exponent - 53 + np.log2(lowest)).min())
