"""Rounding of one value in exact rational arithmetic: the definition that the array versions are held to.

Source: Higham and Pranesh 2019, "Simulating Low Precision Floating-Point Arithmetic", section 3.
"""

import math
from fractions import Fraction

from shoestring.numbers.formats import FloatFormat
from shoestring.numbers.rounding_bits import Rounding

NEAREST = (Rounding.NEAREST_EVEN, Rounding.NEAREST_TO_ZERO, Rounding.NEAREST_AWAY)


def naive_round_to_format(
    x: float,
    fmt: FloatFormat,
    mode: Rounding = Rounding.NEAREST_EVEN,
    *,
    explim: bool = True,
    draw: Fraction | None = None,
) -> float:
    """Round one number; `draw` in [0, 1) decides the stochastic modes.

    Raises: ValueError when a stochastic mode gets no draw.
    """
    if math.isnan(x):
        return x
    if math.isinf(x):
        if not explim or fmt.has_infinity:
            return x
        return math.copysign(fmt.xmax, x) if fmt.saturates else math.nan
    if x == 0:
        return x
    exponent = floor_log2(Fraction(abs(x)))
    flushed = explim and not fmt.subnormal and exponent < fmt.emin
    spacing = exponent - fmt.sig_bits if not explim else max(exponent, fmt.emin) - fmt.sig_bits
    if flushed:
        spacing = fmt.emin
    z = Fraction(abs(x)) / Fraction(2) ** spacing
    lower = math.floor(z)
    odd = lower % 2 == 1
    if fmt.sig_bits == 0:  # the last bit of the code is then that of the exponent field
        odd = lower == 1 and (exponent + fmt.bias) % 2 == 1
    steps = lower + goes_away(z - lower, odd, x < 0, mode, draw, flushed)
    magnitude = steps * Fraction(2) ** spacing
    if explim and magnitude > Fraction(fmt.xmax):
        return math.copysign(overflow(x, fmt, mode), x)
    return math.copysign(float(magnitude), x)


def goes_away(
    fraction: Fraction,
    odd: bool,
    negative: bool,
    mode: Rounding,
    draw: Fraction | None,
    flushed: bool = False,
) -> bool:
    """Whether a value `fraction` above its lower neighbour in magnitude moves to the upper one."""
    if fraction == 0:
        return False
    half = Fraction(1, 2)
    if mode in (Rounding.STOCHASTIC, Rounding.STOCHASTIC_EQUAL, Rounding.RANDOM_DIRECTED) and draw is None:
        raise ValueError(f"mode {mode.name} needs a draw from [0, 1)")
    match mode:
        case Rounding.NEAREST_ODD:
            return fraction > half or (fraction == half and not odd)
        case Rounding.NEAREST_EVEN:
            return fraction > half or (fraction == half and (odd or flushed))
        case Rounding.UP:
            return not negative
        case Rounding.DOWN:
            return negative
        case Rounding.TOWARD_ZERO:
            return False
        case Rounding.STOCHASTIC:
            return draw is not None and draw < fraction
        case Rounding.STOCHASTIC_EQUAL:
            return draw is not None and draw >= half
        case Rounding.NEAREST_TO_ZERO:
            return fraction > half
        case Rounding.NEAREST_AWAY:
            return fraction >= half
        case Rounding.ODD:
            return not odd and not flushed
        case Rounding.RANDOM_DIRECTED:
            return draw is not None and (draw >= half) != negative


def overflow(x: float, fmt: FloatFormat, mode: Rounding) -> float:
    """Magnitude of what a value beyond ±xmax becomes."""
    to_infinity = mode in NEAREST or mode == (Rounding.UP if x > 0 else Rounding.DOWN)
    if fmt.saturates or not to_infinity:
        return fmt.xmax
    return math.inf if fmt.has_infinity else math.nan


def floor_log2(value: Fraction) -> int:
    """The exact floor of log2 of a positive rational."""
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if value >= Fraction(2) ** exponent else exponent - 1
