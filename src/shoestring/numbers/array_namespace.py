"""NumPy, torch or JAX: the library whose functions work on an array, and the array's bits as integers."""

from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoestring.numbers.rounding import is_jax_array
from shoestring.numbers.rounding_bits import carrier_of

_TORCH_INTEGERS = {32: torch.int32, 64: torch.int64}


def namespace_of(x: Any) -> ModuleType:
    """The module with `where`, `sqrt`, `isfinite` … for arrays of the kind of `x`.

    Raises: TypeError for what is no array.
    """
    if isinstance(x, Tensor):
        return torch
    if isinstance(x, (np.ndarray, np.generic)):
        return np
    if is_jax_array(x):
        import jax.numpy

        return jax.numpy
    raise TypeError(f"{type(x).__name__} is no NumPy array, torch tensor or JAX array")


def bits_of(x: Any) -> Any:
    """The bits of a float32 or float64 array as signed integers of the same width."""
    width = carrier_of(str(x.dtype)).width
    if isinstance(x, Tensor):
        return x.view(_TORCH_INTEGERS[width])
    if isinstance(x, (np.ndarray, np.generic)):
        return np.asarray(x).view(f"i{width // 8}")
    from jax import lax

    return lax.bitcast_convert_type(x, f"int{width}")


def from_bits(bits: Any, like: Any) -> Any:
    """The float array whose bits are `bits`: `bits_of` undone, dtype of `like`."""
    if isinstance(bits, Tensor):
        return bits.view(like.dtype)
    if isinstance(bits, (np.ndarray, np.generic)):
        floats = np.asarray(bits).view(like.dtype)
        return floats if isinstance(like, np.ndarray) else floats[()]
    from jax import lax

    return lax.bitcast_convert_type(bits, like.dtype)
