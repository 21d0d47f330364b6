"""Soft errors: after rounding, one stored significand bit of a value flips with some probability.

Source: Carson and Chen 2025, "Pychop", section 3 (bit-level fault injection).
"""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from shoestring.numbers.arrays import cast, flat_bits, module_of, values_of, words_like
from shoestring.numbers.formats import FloatFormat
from shoestring.numbers.philox import FAULT_BIT_STREAM, FAULT_STREAM
from shoestring.numbers.rounder import CallCounter, Rounder
from shoestring.numbers.rounding_bits import FLOAT32, FLOAT64, carrier_of, check_carrier

Array = TypeVar("Array")


def flip_significand_bits(
    x: Array, fmt: FloatFormat, p: float = 0.5, *, seed: int = 0, offset: int = 0, call: int = 0
) -> Array:
    """Flip, with probability `p` for each element, one of its `fmt.sig_bits` stored bits, all alike probable.

    `x`: float32 or float64 array of numbers of `fmt`. The sign, the exponent and the hidden bit never flip;
    zeros, infinities and NaNs stay. A code that so becomes that of NaN (448 in e4m3fn) gives NaN. The draws
    have streams of their own, apart from those of rounding.

    Raises: ValueError for p outside [0, 1] or a format without stored significand bits; TypeError for other
    arrays.
    """
    _check(fmt, p)
    array: Any = x
    xp = module_of(array, "flip_significand_bits")
    carrier = carrier_of(str(array.dtype))
    if carrier not in (FLOAT32, FLOAT64):
        raise TypeError(f"bits are flipped in float32 and float64 arrays, not {array.dtype}; cast explicitly")
    check_carrier(fmt, carrier, explim=True)
    bits = flat_bits(array, carrier)
    chance = words_like(array, seed, offset=offset, stream=FAULT_STREAM, call=call)
    choice = words_like(array, seed, offset=offset, stream=FAULT_BIT_STREAM, call=call)
    flip = cast(1 << ((choice * fmt.sig_bits) >> 32), bits.dtype)
    magnitude = bits & ~carrier.sign
    flipped = bits ^ (flip << (carrier.sig_bits - fmt.sig_bits))
    if fmt.emin > carrier.lowest + carrier.sig_bits:  # else subnormal numbers are stored as the carrier's are
        subnormal = magnitude < carrier.bits_of(fmt.xmin)
        least = 2.0 ** (fmt.emin - fmt.sig_bits)
        values = abs(bits.view(array.dtype))
        steps = cast(xp.where(subnormal, values, 0.0) / least, bits.dtype) ^ flip
        small = (cast(steps, array.dtype) * least).view(bits.dtype)
        flipped = xp.where(subnormal, small | (bits & carrier.sign), flipped)
    beyond = (flipped & ~carrier.sign) > carrier.bits_of(fmt.xmax)
    flipped = xp.where(beyond, carrier.quiet_nan | (bits & carrier.sign), flipped)
    hit = (chance < int(p * 2**32)) & (magnitude > 0) & (magnitude < carrier.infinity)
    return values_of(xp.where(hit, flipped, bits), array)


def _check(fmt: FloatFormat, p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"p={p}: a probability lies between 0 and 1")
    if fmt.sig_bits == 0:
        raise ValueError(f"{fmt} stores no significand bit that could flip")


@dataclass(frozen=True)
class FaultyRounder:
    """Rounds with `rounder`, then flips bits with probability `p`; calls are numbered as those of a Rounder.

    Raises: ValueError for p outside [0, 1], or a rounder without exponent limits or stored significand bits.
    """

    rounder: Rounder
    p: float = 0.5
    seed: int = 0
    counter: CallCounter = field(default_factory=CallCounter, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.rounder.fmt, FloatFormat):
            raise ValueError(f"soft errors act on float formats, not {self.rounder.fmt}")
        _check(self.rounder.fmt, self.p)
        if not self.rounder.explim:
            raise ValueError("soft errors act on stored numbers; the rounder needs explim=True")

    def __call__(self, x: Array, *, call: int | None = None) -> Array:
        """`x` rounded and damaged: same type, dtype and shape."""
        rounded = self.rounder(x, call=call)
        number = self.counter.take() if call is None else call
        fmt: Any = self.rounder.fmt
        return flip_significand_bits(rounded, fmt, self.p, seed=self.seed, call=number)
