"""Values to unsigned codes and back, for every float, fixed-point and integer format of up to 16 bits.

Source: IEEE 754-2019, section 3.4; OCP Microscaling Formats 1.0, section 5.
"""

import functools
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from shoestring.numbers.arrays import cast, flat_bits, module_of
from shoestring.numbers.fixed_point import FixedPointFormat
from shoestring.numbers.formats import FloatFormat
from shoestring.numbers.integer import IntegerFormat
from shoestring.numbers.packing import MAX_BITS
from shoestring.numbers.rounding_bits import FLOAT32, FLOAT64, Carrier, carrier_of

Array = TypeVar("Array")
CodedFormat = FloatFormat | FixedPointFormat | IntegerFormat


def encode(x: Array, fmt: CodedFormat) -> Array:
    """The codes of values that are numbers of `fmt` already: uint8 for formats up to 8 bits, else int32.

    `x`: NumPy array or torch tensor; floating point for float and fixed-point formats, integers (the output
    of `IntegerQuantizer.quantize`) for integer ones.

    Raises: ValueError for a value that `fmt` does not hold, NaN among them where it has no NaN code (round
    first), and for formats wider than 16 bits; TypeError for other arrays.
    """
    _check_width(fmt)
    array: Any = x
    xp = module_of(array, "encode")
    if isinstance(fmt, IntegerFormat):
        _check_integers(array, fmt)
        codes = cast(array, xp.int64) & ((1 << fmt.bits) - 1)
    else:
        carrier = carrier_of(str(array.dtype))
        if carrier not in (FLOAT32, FLOAT64):
            array, carrier = cast(array, xp.float32), FLOAT32
        codes = (
            _float_codes(array, fmt, carrier, xp)
            if isinstance(fmt, FloatFormat)
            else _fixed_codes(array, fmt, xp)
        )
    codes = cast(codes, xp.uint8 if fmt.bits <= 8 else xp.int32)
    _check_same(array, codes, fmt)
    return codes


def decode(codes: Array, fmt: CodedFormat) -> Array:
    """The values of codes: float32 (float64 where that is too narrow), or int32 for an integer format.

    Raises: ValueError for a code outside 0 .. 2^bits − 1 or a format wider than 16 bits; TypeError for codes
    that are not integers.
    """
    _check_width(fmt)
    any_codes: Any = codes
    module_of(any_codes, "decode")
    if "int" not in str(any_codes.dtype):
        raise TypeError(f"codes are integers, not {any_codes.dtype}")
    if 0 not in any_codes.shape and (int(any_codes.min()) < 0 or int(any_codes.max()) >> fmt.bits):
        raise ValueError(f"codes of {fmt.bits} bits run from 0 to {(1 << fmt.bits) - 1}")
    values: Any = _table(fmt)
    if isinstance(any_codes, Tensor):
        on_device = torch.from_numpy(values).to(any_codes.device)
        taken: Any = on_device.index_select(0, any_codes.reshape(-1).to(torch.int32)).view(any_codes.shape)
    else:
        taken = values[any_codes]
    return taken


@functools.lru_cache(maxsize=64)
def _table(fmt: CodedFormat) -> np.ndarray:
    """The value of every code."""
    code = np.arange(1 << fmt.bits, dtype=np.int64)
    if isinstance(fmt, IntegerFormat):
        return np.where(fmt.symmetric & (code >> (fmt.bits - 1) > 0), code - (1 << fmt.bits), code).astype(
            np.int32
        )
    if isinstance(fmt, FixedPointFormat):
        signed = np.where(code >> (fmt.bits - 1) > 0, code - (1 << fmt.bits), code)
        return np.ldexp(signed.astype(np.float64), -fmt.frac_bits).astype(np.float32)
    if not fmt.signed:
        scales = np.ldexp(np.ones(code.shape), (code - fmt.bias).astype(np.int32))
        return np.where(code == fmt.nan_code, np.nan, scales).astype(np.float32)
    magnitude = code & ((1 << (fmt.bits - 1)) - 1)
    field, significand = magnitude >> fmt.sig_bits, magnitude & ((1 << fmt.sig_bits) - 1)
    hidden = np.where(field > 0, 1 << fmt.sig_bits, 0)
    if not fmt.subnormal:
        significand = np.where(field > 0, significand, 0)
    spacing = np.maximum(field, 1) - fmt.bias - fmt.sig_bits
    with np.errstate(over="ignore"):
        value = np.ldexp((hidden + significand).astype(np.float64), spacing.astype(np.int32))
    if fmt.has_infinity:
        top = (1 << fmt.exp_bits) - 1
        value = np.where(field == top, np.where(significand == 0, np.inf, np.nan), value)
    elif fmt.nan_code is not None:
        value = np.where(magnitude == fmt.nan_code, np.nan, value)
    value = np.where(code >> (fmt.bits - 1) > 0, -value, value)
    fits = fmt.emax <= FLOAT32.bias and fmt.emin - fmt.sig_bits >= FLOAT32.lowest
    return value.astype(np.float32 if fits else np.float64)


def _float_codes(x: Any, fmt: FloatFormat, carrier: Carrier, xp: Any) -> Any:
    bits, where = flat_bits(x, carrier), xp.where
    magnitude, negative = bits & ~carrier.sign, bits < 0
    cut = carrier.sig_bits - fmt.sig_bits
    codes = (magnitude >> cut) - ((carrier.bias - fmt.bias) << fmt.sig_bits)
    if fmt.signed:
        field = magnitude >> carrier.sig_bits
        significand = where(
            field > 0, (magnitude & ((1 << carrier.sig_bits) - 1)) | (1 << carrier.sig_bits), magnitude
        )
        spacing = field.clip(1, None) - (carrier.bias + carrier.sig_bits)
        shift = (fmt.emin - fmt.sig_bits - spacing).clip(0, carrier.sig_bits + 2)
        codes = where(magnitude < carrier.bits_of(fmt.xmin), significand >> shift, codes)
    top = ((1 << fmt.exp_bits) - 1) << fmt.sig_bits
    nan = fmt.nan_code if fmt.nan_code is not None else top | (1 << fmt.sig_bits >> 1)
    codes = where(magnitude >= carrier.infinity, where(magnitude == carrier.infinity, top, nan), codes)
    if fmt.signed:
        sign = 1 << (fmt.bits - 1)
        codes = (codes & (sign - 1)) | where(negative, sign, 0)
    return (codes & ((1 << fmt.bits) - 1)).reshape(x.shape)


def _fixed_codes(x: Any, fmt: FixedPointFormat, xp: Any) -> Any:
    inside = (x >= fmt.xmin) & (x <= fmt.xmax)
    steps = cast(xp.where(inside, x, 0.0) * 2.0**fmt.frac_bits, xp.int64)
    return steps & ((1 << fmt.bits) - 1)


def _check_same(x: Any, codes: Any, fmt: CodedFormat) -> None:
    back = decode(codes, fmt)
    same = (back == x) | ((x != x) & (back != back))
    if not bool(same.all()):
        wrong = x[~same].reshape(-1)[0].item()
        if wrong != wrong:
            raise ValueError(f"NaN has no code in {fmt}")
        raise ValueError(f"{wrong!r} is not a number of {fmt}; round to the format before encoding")


def _check_integers(x: Any, fmt: IntegerFormat) -> None:
    if "int" not in str(x.dtype):
        raise TypeError(f"an integer format encodes integers, not {x.dtype}; quantize first")
    if 0 not in x.shape and not fmt.qmin <= int(x.min()) <= int(x.max()) <= fmt.qmax:
        raise ValueError(
            f"integers from {int(x.min())} to {int(x.max())} exceed {fmt.qmin} .. {fmt.qmax} of {fmt}"
        )


def _check_width(fmt: CodedFormat) -> None:
    if fmt.bits > MAX_BITS:
        raise ValueError(f"{fmt} has {fmt.bits} bits; codes of up to {MAX_BITS} bits are supported")
