"""Rounding of whole arrays to a number format, on NumPy, torch (any device) and JAX, with the same bits.

Source: Higham and Pranesh 2019, "Simulating Low Precision Floating-Point Arithmetic", section 3; Carson and
Chen 2025, "Pychop", section 3 (modes and their integer codes).
"""

from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.numbers.formats import FloatFormat
from shoestring.numbers.philox import ROUNDING_LOW_STREAM, ROUNDING_STREAM, random_words, random_words_torch
from shoestring.numbers.rounding_bits import (
    BFLOAT16,
    DRAWING_MODES,
    FLOAT16,
    FLOAT64,
    Carrier,
    Rounding,
    carrier_of,
    check_carrier,
    check_float_mode,
    round_bits,
)

Array = TypeVar("Array")

_TORCH_INTEGERS = {"float32": torch.int32, "float64": torch.int64}


def round_to_format(
    x: Array,
    fmt: FloatFormat,
    mode: int = Rounding.NEAREST_EVEN,
    *,
    seed: int = 0,
    explim: bool = True,
    offset: int = 0,
    call: int = 0,
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
    if isinstance(array, Tensor):
        return _round_torch(array, fmt, mode, seed, explim, offset, call)  # type: ignore[return-value]
    if isinstance(array, (np.ndarray, np.generic)):
        return _round_numpy(array, fmt, mode, seed, explim, offset, call)  # type: ignore[return-value]
    if is_jax_array(array):
        from shoestring.numbers.jax_rounding import round_to_format_jax

        rounded: Any = round_to_format_jax(
            array, fmt, mode, seed=seed, explim=explim, offset=offset, call=call
        )
        return rounded
    raise TypeError(
        f"round_to_format takes a NumPy array, a torch tensor or a JAX array, not {type(x).__name__}; "
        f"wrap a plain number as numpy.float64(x)"
    )


def is_jax_array(x: Any) -> bool:
    """Whether `x` is a JAX array (or a tracer of one), told without importing JAX."""
    return any(base.__module__.partition(".")[0] in ("jax", "jaxlib") for base in type(x).__mro__)


def _round_numpy(
    x: np.ndarray | np.generic,
    fmt: FloatFormat,
    mode: Rounding,
    seed: int,
    explim: bool,
    offset: int,
    call: int,
) -> np.ndarray | np.generic:
    carrier = carrier_of(x.dtype.name)
    check_carrier(fmt, carrier, explim)
    if carrier in (FLOAT16, BFLOAT16):
        wide = _round_numpy(x.astype(np.float32), fmt, mode, seed, explim, offset, call)
        return wide.astype(x.dtype)
    flat = np.ascontiguousarray(x).reshape(-1)
    words = draw_numpy(flat.size, seed, offset, call, carrier) if mode in DRAWING_MODES else None
    bits = round_bits(flat.view(f"i{carrier.width // 8}"), words, fmt, mode, carrier, explim, np.where)
    rounded = bits.view(flat.dtype).reshape(x.shape)
    return rounded if isinstance(x, np.ndarray) else rounded[()]


def draw_numpy(size: int, seed: int, offset: int, call: int, carrier: Carrier) -> np.ndarray:
    """Random integers of width−1 bits, one an element; a wider carrier only appends low bits."""
    high = random_words(size, seed, offset=offset, stream=ROUNDING_STREAM, call=call)
    if carrier is not FLOAT64:
        return (high >> 1).view(np.int32)
    low = random_words(size, seed, offset=offset, stream=ROUNDING_LOW_STREAM, call=call)
    return (high.astype(np.int64) << 31) | (low >> 1).astype(np.int64)


def _round_torch(
    x: Float[Tensor, "..."],
    fmt: FloatFormat,
    mode: Rounding,
    seed: int,
    explim: bool,
    offset: int,
    call: int,
) -> Float[Tensor, "..."]:
    carrier = carrier_of(str(x.dtype))
    check_carrier(fmt, carrier, explim)
    if carrier in (FLOAT16, BFLOAT16):
        return _round_torch(x.float(), fmt, mode, seed, explim, offset, call).to(x.dtype)
    flat = x.detach().contiguous().view(-1)
    words = draw_torch(flat.numel(), seed, offset, call, carrier, x.device) if mode in DRAWING_MODES else None
    bits = round_bits(
        flat.view(_TORCH_INTEGERS[carrier.name]), words, fmt, mode, carrier, explim, torch.where
    )
    return bits.view(flat.dtype).view(x.shape)


def draw_torch(
    size: int, seed: int, offset: int, call: int, carrier: Carrier, device: torch.device
) -> Tensor:
    """The same random integers as `draw_numpy`, on `device`."""
    high = random_words_torch(size, seed, offset=offset, stream=ROUNDING_STREAM, call=call, device=device)
    if carrier is not FLOAT64:
        return (high >> 1) & 0x7FFFFFFF
    low = random_words_torch(size, seed, offset=offset, stream=ROUNDING_LOW_STREAM, call=call, device=device)
    return ((high.long() & 0xFFFFFFFF) << 31) | ((low.long() & 0xFFFFFFFF) >> 1)
