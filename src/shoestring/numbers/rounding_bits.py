"""Rounding as integer arithmetic on the bits of the carrier: one implementation for NumPy, torch and JAX.

A carrier's magnitude bits are an ordered code, its significand an integer, and every target spacing a power
of two; so each rounding is a shift, a comparison of the remainder, and perhaps one increment. No step
computes in floating point, so nothing depends on the processor's rounding mode or on subnormals being
flushed.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from shoestring.numbers.formats import FloatFormat


class Rounding(IntEnum):
    """Which of the two neighbours of a value that lies between them is taken."""

    NEAREST_ODD = 0
    """Nearest, ties to the odd neighbour; fixed point only."""
    NEAREST_EVEN = 1
    UP = 2
    """Towards +∞."""
    DOWN = 3
    """Towards −∞."""
    TOWARD_ZERO = 4
    STOCHASTIC = 5
    """Away from zero with probability equal to the fraction passed: unbiased."""
    STOCHASTIC_EQUAL = 6
    """Either neighbour with probability 1/2."""
    NEAREST_TO_ZERO = 7
    """Nearest, ties towards zero."""
    NEAREST_AWAY = 8
    """Nearest, ties away from zero."""
    ODD = 9
    """The neighbour with an odd last bit, so that a second, shorter rounding is still correct."""
    RANDOM_DIRECTED = 10
    """Up or down (towards ±∞) by one random bit an element, as CADNA does."""


DRAWING_MODES = frozenset({Rounding.STOCHASTIC, Rounding.STOCHASTIC_EQUAL, Rounding.RANDOM_DIRECTED})


def check_mode(mode: int) -> Rounding:
    """The rounding mode of an integer code.

    Raises: ValueError listing the modes.
    """
    try:
        return Rounding(mode)
    except ValueError:
        modes = ", ".join(f"{each.name}={each.value}" for each in Rounding)
        raise ValueError(f"unknown rounding mode {mode!r}; the modes are {modes}") from None


def check_float_mode(mode: int) -> Rounding:
    """The rounding mode of an integer code, for floating-point formats.

    Raises: ValueError for an unknown mode, and for the one that only fixed point has.
    """
    if check_mode(mode) == Rounding.NEAREST_ODD:
        raise ValueError("mode NEAREST_ODD=0 is defined for fixed point only; use NEAREST_EVEN=1")
    return Rounding(mode)


@dataclass(frozen=True)
class Carrier:
    """The native type whose bits are worked on. `width` bits, `sig_bits` of them stored significand."""

    name: str
    width: int
    sig_bits: int

    @property
    def bias(self) -> int:
        return (1 << (self.width - self.sig_bits - 2)) - 1

    @property
    def lowest(self) -> int:
        """Exponent of the smallest subnormal number: the spacing of the integers that subnormals are."""
        return 1 - self.bias - self.sig_bits

    @property
    def infinity(self) -> int:
        return ((1 << (self.width - 1 - self.sig_bits)) - 1) << self.sig_bits

    @property
    def quiet_nan(self) -> int:
        return self.infinity | 1 << (self.sig_bits - 1)

    @property
    def sign(self) -> int:
        """The sign bit as a signed integer."""
        return -1 << (self.width - 1)

    def power_bits(self, exponent: int) -> int:
        """The bits of 2^exponent."""
        if exponent > self.lowest + self.sig_bits:
            return (exponent + self.bias) << self.sig_bits
        return 1 << (exponent - self.lowest)

    def bits_of(self, value: float) -> int:
        """The magnitude bits of a positive value that this carrier holds exactly."""
        code = struct.unpack("<q", struct.pack("<d", value))[0]
        if self.width == 64 or value == 0:
            return int(code)
        significand, exponent = math.frexp(value)
        if exponent - 1 < self.lowest + self.sig_bits:
            return int(math.ldexp(value, -self.lowest))
        return self.power_bits(exponent - 1) + int(math.ldexp(2 * significand - 1, self.sig_bits))


FLOAT16 = Carrier("float16", 16, 10)
BFLOAT16 = Carrier("bfloat16", 16, 7)
FLOAT32 = Carrier("float32", 32, 23)
FLOAT64 = Carrier("float64", 64, 52)
CARRIERS = {carrier.name: carrier for carrier in (FLOAT16, BFLOAT16, FLOAT32, FLOAT64)}


def carrier_of(dtype_name: str) -> Carrier:
    """The carrier of an array's dtype.

    Raises: TypeError for a dtype that carries no floating-point values.
    """
    name = dtype_name.removeprefix("torch.")
    if name not in CARRIERS:
        raise TypeError(
            f"a {name} array cannot carry rounded values; cast explicitly to float32 or float64 "
            f"(a real and an imaginary part each by itself)"
        )
    return CARRIERS[name]


def check_carrier(fmt: FloatFormat, carrier: Carrier, explim: bool) -> None:
    """Raises: ValueError when a value of the format may not be exact in the carrier, naming the limit."""
    if fmt.sig_bits > carrier.sig_bits:
        raise ValueError(
            f"a format of t={fmt.precision} bits of precision does not fit a {carrier.name} array, whose "
            f"exact limit is t={carrier.sig_bits + 1}; cast to a wider type first"
        )
    smallest = fmt.emin - (fmt.sig_bits if fmt.subnormal else 0)
    if explim and (fmt.emax > carrier.bias or smallest < carrier.lowest):
        raise ValueError(
            f"a format with values from 2^{smallest} to 2^{fmt.emax} does not fit a {carrier.name} array, "
            f"whose limits are 2^{carrier.lowest} and 2^{carrier.bias}; cast to a wider type first"
        )


@dataclass(frozen=True)
class Grid:
    """Where the representable numbers lie, the upper end left out.

    The spacing at exponent E is 2^max(E − sig_bits, lowest); `sig_bits=None`: it is 2^lowest everywhere;
    `lowest=None`: there is no lower limit. `flush`: below 2^flush there is only zero.
    `bias` makes the exponent's parity the last bit of a code that has no stored significand.
    """

    sig_bits: int | None
    lowest: int | None
    flush: int | None = None
    bias: int = 0


def format_grid(fmt: FloatFormat, explim: bool) -> Grid:
    """The grid of a format; with explim=False that of its precision alone."""
    if not explim:
        return Grid(fmt.sig_bits, None, None, fmt.bias)
    return Grid(fmt.sig_bits, fmt.emin - fmt.sig_bits, None if fmt.subnormal else fmt.emin, fmt.bias)


Where = Callable[[Any, Any, Any], Any]


def round_magnitude(
    magnitude: Any, negative: Any, words: Any, mode: Rounding, grid: Grid, carrier: Carrier, where: Where
) -> Any:
    """Magnitude bits rounded to the grid; infinities and NaNs come out as garbage for the caller to replace.

    `words`: random integers of width−1 bits, or None in a mode that draws none.
    """
    field = magnitude >> carrier.sig_bits
    normal = field > 0
    hidden = 1 << carrier.sig_bits
    significand = where(normal, (magnitude & (hidden - 1)) | hidden, magnitude)
    spacing = field.clip(1, None) - (carrier.bias + carrier.sig_bits)
    exponent = field - carrier.bias
    if grid.lowest is None or grid.sig_bits == 0:
        exponent = where(normal, exponent, _bit_length(significand, carrier, where) - 1 + spacing)

    distance, flushed = _target_spacing(exponent, grid, where)
    distance = distance - spacing
    shift = distance.clip(0, carrier.sig_bits + 2)
    kept = significand >> shift
    rest = significand - (kept << shift)
    odd = (kept & 1) == 1
    if grid.sig_bits == 0:
        odd = odd & (((exponent + grid.bias) & 1) == 1)
    away = _round_away(kept, rest, shift, distance, odd, flushed, negative, words, mode, carrier, where)

    inside = shift <= carrier.sig_bits
    shift = shift.clip(0, carrier.sig_bits)
    down = where(inside, (magnitude >> shift) << shift, 0)
    up = ((magnitude >> shift) + 1) << shift
    if grid.lowest is not None:
        smallest = carrier.power_bits(grid.lowest if grid.flush is None else grid.flush)
        up = where(inside, up, smallest)
    return where(away, up, down)


def _target_spacing(exponent: Any, grid: Grid, where: Where) -> tuple[Any, Any]:
    """Exponent of the spacing at each element, and where flushing replaces subnormal numbers (or None)."""
    if grid.sig_bits is None:
        return exponent * 0 + grid.lowest, None
    if grid.lowest is None:
        return exponent - grid.sig_bits, None
    target = (exponent - grid.sig_bits).clip(grid.lowest, None)
    if grid.flush is None:
        return target, None
    flushed = exponent < grid.flush
    return where(flushed, grid.flush, target), flushed


def _round_away(
    kept: Any,
    rest: Any,
    shift: Any,
    distance: Any,
    odd: Any,
    flushed: Any,
    negative: Any,
    words: Any,
    mode: Rounding,
    carrier: Carrier,
    where: Where,
) -> Any:
    """Whether each element moves to its neighbour away from zero."""
    inexact = rest != 0
    if mode in (Rounding.UP, Rounding.DOWN):
        return inexact & (negative == (mode == Rounding.DOWN))
    if mode == Rounding.TOWARD_ZERO:
        return inexact & (kept < 0)
    if mode == Rounding.ODD:
        away = inexact & ~odd
        return away if flushed is None else away & ~flushed
    if mode in DRAWING_MODES:
        return inexact & _draw_away(rest, distance, negative, words, mode, carrier, where)
    twice, unit = rest << 1, (kept * 0 + 1) << shift
    above, tie = twice > unit, (twice == unit) & inexact
    if mode == Rounding.NEAREST_TO_ZERO:
        return above
    if mode == Rounding.NEAREST_AWAY:
        return above | tie
    if mode == Rounding.NEAREST_ODD:
        return above | (tie & ~odd)
    return above | (tie & (odd if flushed is None else odd | flushed))


def _draw_away(
    rest: Any, distance: Any, negative: Any, words: Any, mode: Rounding, carrier: Carrier, where: Where
) -> Any:
    bits = carrier.width - 1
    heads = words >= 1 << (bits - 1)
    if mode == Rounding.STOCHASTIC_EQUAL:
        return heads
    if mode == Rounding.RANDOM_DIRECTED:
        return heads != negative
    near, far = (bits - distance).clip(0, bits), (distance - bits).clip(0, bits)
    return words < where(distance <= bits, rest << near, rest >> far)


def _bit_length(value: Any, carrier: Carrier, where: Where) -> Any:
    length = value * 0
    for step in (32, 16, 8, 4, 2, 1):
        if step < carrier.width - 1:
            large = (value >> step) > 0
            length = length + where(large, length * 0 + step, length * 0)
            value = where(large, value >> step, value)
    return length + where(value > 0, length * 0 + 1, length * 0)


def round_bits(
    bits: Any, words: Any, fmt: FloatFormat, mode: Rounding, carrier: Carrier, explim: bool, where: Where
) -> Any:
    """The carrier's bits (signed integers) of each element rounded to `fmt`, its range included."""
    magnitude = bits & ~carrier.sign
    negative = bits < 0
    grid = format_grid(fmt, explim)
    rounded = round_magnitude(magnitude, negative, words, mode, grid, carrier, where)
    if explim:
        rounded = _limit(rounded, magnitude, negative, fmt, mode, carrier, where)
    else:
        rounded = where(magnitude == carrier.infinity, magnitude, rounded)
    if not fmt.signed:
        rounded = where(
            negative & (magnitude > 0), carrier.quiet_nan, rounded.clip(carrier.power_bits(fmt.emin), None)
        )
        return where(magnitude > carrier.infinity, bits, rounded)
    return where(magnitude > carrier.infinity, bits, rounded | (bits & carrier.sign))


def _limit(
    rounded: Any,
    magnitude: Any,
    negative: Any,
    fmt: FloatFormat,
    mode: Rounding,
    carrier: Carrier,
    where: Where,
) -> Any:
    """Replace what lies beyond the format's range, as the mode says."""
    largest = carrier.bits_of(fmt.xmax)
    above, below, infinite = beyond_range(fmt, mode, carrier)
    outside = rounded > largest
    rounded = where(outside & negative, below, where(outside & ~negative, above, rounded))
    return where(magnitude == carrier.infinity, infinite, rounded)


def beyond_range(fmt: FloatFormat, mode: Rounding, carrier: Carrier) -> tuple[int, int, int]:
    """Magnitude bits of what stands above xmax, below −xmax, and for an infinity."""
    largest = carrier.bits_of(fmt.xmax)
    nothing = carrier.infinity if fmt.has_infinity else carrier.quiet_nan
    nearest = mode in (Rounding.NEAREST_EVEN, Rounding.NEAREST_TO_ZERO, Rounding.NEAREST_AWAY)
    above = nothing if not fmt.saturates and (nearest or mode == Rounding.UP) else largest
    below = nothing if not fmt.saturates and (nearest or mode == Rounding.DOWN) else largest
    return above, below, largest if fmt.saturates and not fmt.has_infinity else nothing
