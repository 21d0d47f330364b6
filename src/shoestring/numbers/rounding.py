"""Rounding of whole arrays to a number format, on NumPy, torch (any device) and JAX, with the same bits.

Source: Higham and Pranesh 2019, "Simulating Low Precision Floating-Point Arithmetic", section 3; Carson and
Chen 2025, "Pychop", section 3 (modes and their integer codes).
"""

from typing import Any, TypeVar

import numpy as np

from shoestring.numbers.arrays import cast, draw_like, flat_bits, module_of, values_of
from shoestring.numbers.formats import FloatFormat
from shoestring.numbers.rounding_bits import (
    BFLOAT16,
    DRAWING_MODES,
    FLOAT16,
    Rounding,
    carrier_of,
    check_carrier,
    check_float_mode,
    round_bits,
)

Array = TypeVar("Array")


def round_to_format(
    x: Array,
    fmt: FloatFormat,
    mode: int = Rounding.NEAREST_EVEN,
    *,
    seed: int = 0,
    explim: bool = True,
    offset: int = 0,
    call: Any = 0,
) -> Array:
    """Round every element of `x` to a number of `fmt`; the result has the type, dtype and shape of `x`.

    `x`: NumPy array or scalar, torch tensor or JAX array of float32 or float64, or of float16 or bfloat16
    where that type holds all of `fmt`. No gradient passes (it is zero almost everywhere). `explim=False`:
    only the precision of `fmt` counts, its exponent range does not. The stochastic modes draw from Philox:
    element i takes word `offset` + i of call number `call` under the key `seed`, so a chunk that starts at
    element n of a larger array gives the same bits with offset=n, and float32 and float64 arrays of the
    same values agree.

    Beyond ±xmax: the nearest modes give ±inf, UP and DOWN ±inf on their side, every other mode ±xmax; NaN
    stands for ±inf in a finite-only format; formats that saturate give ±xmax always. NaNs and the sign of
    zero stay. With subnormals off, values below xmin become 0 or ±xmin; the nearest modes take ±xmin from
    xmin/2 on (NEAREST_TO_ZERO: above it), and ODD takes 0.

    Raises: TypeError for integer, boolean or complex arrays; ValueError for an unknown mode or a format that
    the array's type cannot hold.
    """
    mode = check_float_mode(mode)
    array: Any = x
    if is_jax_array(array):
        from shoestring.numbers.jax_rounding import round_to_format_jax

        rounded: Any = round_to_format_jax(
            array, fmt, mode, seed=seed, explim=explim, offset=offset, call=call
        )
    elif isinstance(array, np.generic):
        rounded = _round_array(np.asarray(array), fmt, mode, seed, explim, offset, call)[()]
    else:
        rounded = _round_array(array, fmt, mode, seed, explim, offset, call)
    return rounded


def is_jax_array(x: Any) -> bool:
    """Whether `x` is a JAX array (or a tracer of one), told without importing JAX."""
    return any(base.__module__.partition(".")[0] in ("jax", "jaxlib") for base in type(x).__mro__)


def _round_array(
    x: Any, fmt: FloatFormat, mode: Rounding, seed: int, explim: bool, offset: int, call: Any
) -> Any:
    xp = module_of(x, "round_to_format")
    carrier = carrier_of(str(x.dtype))
    check_carrier(fmt, carrier, explim)
    if carrier in (FLOAT16, BFLOAT16):
        wide = _round_array(cast(x, xp.float32), fmt, mode, seed, explim, offset, call)
        return cast(wide, x.dtype)
    words = draw_like(x, seed, offset, call, carrier) if mode in DRAWING_MODES else None
    bits = round_bits(flat_bits(x, carrier), words, fmt, mode, carrier, explim, xp.where)
    return values_of(bits, x)
