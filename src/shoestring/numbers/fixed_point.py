"""Fixed-point numbers Q(i, f): multiples of 2^-f in two's complement, i integer bits counting the sign.

Source: Carson and Chen 2025, "Pychop", section 3 (fixed-point arithmetic).
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

from shoestring.numbers.arrays import draw_like, flat_bits, module_of, values_of
from shoestring.numbers.naive_rounding import goes_away
from shoestring.numbers.rounding_bits import (
    DRAWING_MODES,
    FLOAT32,
    FLOAT64,
    Carrier,
    Grid,
    Rounding,
    carrier_of,
    check_mode,
    round_magnitude,
)

Array = TypeVar("Array")


@dataclass(frozen=True)
class FixedPointFormat:
    """Q(`int_bits`, `frac_bits`): spacing 2^-frac_bits from −2^(int_bits−1) to 2^(int_bits−1) − 2^-frac_bits.

    Raises: ValueError for int_bits < 1, frac_bits < 0, or more than 53 bits together (float64's precision).
    """

    int_bits: int
    frac_bits: int

    def __post_init__(self) -> None:
        if self.int_bits < 1:
            raise ValueError(f"int_bits={self.int_bits}: at least 1, the sign")
        if self.frac_bits < 0:
            raise ValueError(f"frac_bits={self.frac_bits}: zero or more")
        if self.bits > FLOAT64.sig_bits + 2:
            raise ValueError(
                f"{self.bits} bits: float64 holds fixed-point numbers of at most 54 bits exactly"
            )

    @property
    def bits(self) -> int:
        return self.int_bits + self.frac_bits

    @property
    def resolution(self) -> float:
        return math.ldexp(1.0, -self.frac_bits)

    @property
    def xmax(self) -> float:
        return math.ldexp((1 << (self.bits - 1)) - 1, -self.frac_bits)

    @property
    def xmin(self) -> float:
        """The least (most negative) number."""
        return -math.ldexp(1.0, self.int_bits - 1)


def round_to_fixed_point(
    x: Array,
    fmt: FixedPointFormat,
    mode: int = Rounding.NEAREST_EVEN,
    *,
    seed: int = 0,
    offset: int = 0,
    call: int = 0,
) -> Array:
    """Round every element to a multiple of the resolution and clamp it to the range; NaN stays NaN.

    `x`: float32 or float64 NumPy array or torch tensor. All eleven modes; draws as in `round_to_format`.
    A result of zero is +0: two's complement has only one.

    Raises: TypeError for other arrays; ValueError for an unknown mode or a format too wide for the dtype.
    """
    mode = check_mode(mode)
    array: Any = x
    xp = module_of(array, "round_to_fixed_point")
    carrier = carrier_of(str(array.dtype))
    if carrier not in (FLOAT32, FLOAT64):
        raise TypeError(f"fixed point is carried by float32 or float64, not {array.dtype}; cast explicitly")
    if fmt.bits - 1 > carrier.sig_bits + 1 or fmt.frac_bits > -carrier.lowest:
        raise ValueError(
            f"Q({fmt.int_bits}, {fmt.frac_bits}) has {fmt.bits} bits; a {carrier.name} array holds at most "
            f"{carrier.sig_bits + 2} exactly, spaced 2^{carrier.lowest} or more"
        )
    words = draw_like(array, seed, offset, call, carrier) if mode in DRAWING_MODES else None
    bits = _round_bits(flat_bits(array, carrier), words, fmt, mode, carrier, xp.where)
    return values_of(bits, array)


def _round_bits(
    bits: Any, words: Any, fmt: FixedPointFormat, mode: Rounding, carrier: Carrier, where: Any
) -> Any:
    magnitude, negative = bits & ~carrier.sign, bits < 0
    grid = Grid(sig_bits=None, lowest=-fmt.frac_bits)
    rounded = round_magnitude(magnitude, negative, words, mode, grid, carrier, where)
    top, bottom = carrier.bits_of(fmt.xmax), carrier.bits_of(-fmt.xmin)
    infinite = magnitude == carrier.infinity
    rounded = where(negative & ((rounded > bottom) | infinite), bottom, rounded)
    rounded = where(~negative & ((rounded > top) | infinite), top, rounded)
    signed = where(rounded == 0, rounded, rounded | (bits & carrier.sign))
    return where(magnitude > carrier.infinity, bits, signed)


def naive_round_to_fixed_point(
    x: float, fmt: FixedPointFormat, mode: Rounding, *, draw: Fraction | None = None
) -> float:
    """One number, in exact rational arithmetic."""
    if math.isnan(x):
        return x
    if math.isinf(x):
        return fmt.xmax if x > 0 else fmt.xmin
    z = abs(Fraction(x)) * 2**fmt.frac_bits
    lower = math.floor(z)
    steps = lower + goes_away(z - lower, lower % 2 == 1, x < 0, mode, draw)
    value = Fraction(steps, 2**fmt.frac_bits) * (-1 if x < 0 else 1)
    return float(min(max(value, Fraction(fmt.xmin)), Fraction(fmt.xmax)))
