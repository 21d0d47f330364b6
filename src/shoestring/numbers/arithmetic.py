"""Arithmetic in which every single operation is rounded to a number format.

Source: Higham and Pranesh 2019, "Simulating Low Precision Floating-Point Arithmetic", section 2; Boldo and
Melquiond 2008, "Emulation of FMA and Correctly Rounded Sums", section 3 (sums to odd).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from shoestring.numbers.array_namespace import bits_of, from_bits, namespace_of
from shoestring.numbers.exactness import Rounds, check_exactness


def add_to_odd(a: Any, b: Any) -> Any:
    """a + b rounded to odd in the carrier: exact, or the neighbour of the exact sum with an odd last bit.

    A sum rounded to nearest would hide from a directed rounding on which side of a representable number it
    lies (1 + 2^-60 is 1 in float64, yet rounds up in every format). The error of the sum is found by
    Knuth's TwoSum. `a`, `b`: float32 or float64 arrays of one library.
    """
    xp = namespace_of(a)
    with np.errstate(invalid="ignore", over="ignore"):
        total = a + b
        b_part = total - a
        error = (a - (total - b_part)) + (b - b_part)
    bits = bits_of(total)
    between = (error != 0) & xp.isfinite(total) & ((bits & 1) == 0)
    outward = (error > 0) == (total > 0)
    return from_bits(xp.where(between, xp.where(outward, bits + 1, bits - 1), bits), total)


@dataclass(frozen=True)
class Arithmetic:
    """The operations of a format on NumPy, torch or JAX arrays; `rounder=None` is the carrier's own.

    Operands must be numbers of the format already (`arithmetic.round` makes them so); each operation is then
    correctly rounded in every deterministic mode, and unbiased in the stochastic one, if the carrier is
    wide enough: `check` tells.
    """

    rounder: Rounds | None = None

    def check(self, dtype: Any) -> None:
        """Raises: ValueError where `dtype` is too narrow a carrier for the rounder's format."""
        if self.rounder is not None:
            check_exactness(self.rounder, dtype)

    def round(self, x: Any) -> Any:
        return x if self.rounder is None else self.rounder(x)

    def add(self, a: Any, b: Any) -> Any:
        return a + b if self.rounder is None else self.rounder(add_to_odd(a, b))

    def subtract(self, a: Any, b: Any) -> Any:
        return a - b if self.rounder is None else self.rounder(add_to_odd(a, -b))

    def multiply(self, a: Any, b: Any) -> Any:
        return self.round(a * b)

    def divide(self, a: Any, b: Any) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.round(a / b)

    def sqrt(self, a: Any) -> Any:
        with np.errstate(invalid="ignore"):
            return self.round(namespace_of(a).sqrt(a))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a·b + c with one rounding.

        The product is exact in the carrier, the sum is to odd. Without a rounder there is no carrier to be
        exact in: the carrier's own product and sum are rounded one after the other.
        """
        return self.add(a * b, c)
