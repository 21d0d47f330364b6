"""When an operation that is computed in a carrier and then rounded is correctly rounded.

A carrier of p bits leaves no trace of its own rounding in + − × ÷ √ of numbers of t bits if p ≥ 2t + 2
(sums are computed to odd here, which needs less). The exponents must reach far enough as well: where the
carrier overflows or loses a product to zero, only rounding to nearest gives what it would have given.

Source: Figueroa 1995, "When is Double Rounding Innocuous?"; Boldo and Melquiond 2008, "Emulation of FMA and
Correctly Rounded Sums: Proved Algorithms Using Rounding to Odd".
"""

from collections.abc import Callable
from typing import Any

from shoestring.numbers.fixed_point import FixedPointFormat
from shoestring.numbers.formats import FloatFormat
from shoestring.numbers.rounding_bits import FLOAT64, Carrier, Rounding, carrier_of

Rounds = Callable[[Any], Any]
"""What rounds an array: a `Rounder`, or any function from an array to one of the same shape and dtype."""

_NEAREST = (Rounding.NEAREST_EVEN, Rounding.NEAREST_TO_ZERO, Rounding.NEAREST_AWAY)


def check_exactness(rounder: Rounds, dtype: Any) -> None:
    """Raises: ValueError naming the limit, where one rounded operation in `dtype` could round twice.

    A rounder that has neither a float nor a fixed-point format cannot be judged and passes.
    """
    fmt = getattr(rounder, "fmt", None)
    if isinstance(fmt, FixedPointFormat):
        _check_width(fmt.bits, carrier_of(getattr(dtype, "__name__", str(dtype))))
    if not isinstance(fmt, FloatFormat):
        return
    carrier = carrier_of(getattr(dtype, "__name__", str(dtype)))
    mode = getattr(rounder, "mode", Rounding.NEAREST_EVEN)
    if fmt.sig_bits == carrier.sig_bits and mode == Rounding.NEAREST_EVEN:
        return  # the carrier is the format
    _check_width(fmt.precision, carrier)
    if getattr(rounder, "explim", True) and not _range_suffices(fmt, mode, carrier):
        raise ValueError(
            f"products of numbers from {fmt.xmins:g} to {fmt.xmax:g} overflow or vanish in {carrier.name} "
            f"before mode {Rounding(mode).name} sees them; use a wider carrier or fewer exponent bits"
        )


def _check_width(t: int, carrier: Carrier) -> None:
    bits = carrier.sig_bits + 1
    if bits < 2 * t + 2:
        wider = "; use float64" if carrier.width < 64 and 2 * t + 2 <= FLOAT64.sig_bits + 1 else ""
        raise ValueError(
            f"operations on numbers of t={t} bits are not correctly rounded through {carrier.name}: its "
            f"{bits} bits suffice for t <= {(bits - 2) // 2} (2t + 2 are needed){wider}"
        )


def _range_suffices(fmt: FloatFormat, mode: int, carrier: Carrier) -> bool:
    """Whether no result leaves the carrier's range, or only results that round to nearest all the same."""
    smallest = fmt.emin - fmt.sig_bits
    if mode in _NEAREST and not fmt.saturates:
        # A product near a tie of the smallest spacing must still be held exactly.
        return fmt.emin - 3 * fmt.sig_bits - 2 >= carrier.lowest
    return (
        2 * fmt.emax + 1 <= carrier.bias
        and 2 * smallest >= carrier.lowest
        and fmt.emax - smallest <= carrier.bias
    )
