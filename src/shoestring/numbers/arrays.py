"""The few operations that NumPy and torch spell differently, so that one routine serves both."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoestring.numbers.philox import ROUNDING_LOW_STREAM, ROUNDING_STREAM, random_words, random_words_torch
from shoestring.numbers.rounding_bits import Carrier


def module_of(x: Any, purpose: str) -> Any:
    """The module, torch or numpy, whose array `x` is.

    Raises: TypeError naming the purpose for anything else.
    """
    if isinstance(x, Tensor):
        return torch
    if isinstance(x, np.ndarray):
        return np
    raise TypeError(f"{purpose} takes a NumPy array or a torch tensor, not {type(x).__name__}")


def cast(x: Any, dtype: Any) -> Any:
    """`x` as another dtype of its own module."""
    return x.to(dtype) if isinstance(x, Tensor) else x.astype(dtype)


def flat_bits(x: Any, carrier: Carrier) -> Any:
    """The elements in order, as one row of signed integers of the carrier's width."""
    if isinstance(x, Tensor):
        return x.detach().contiguous().view(-1).view(torch.int32 if carrier.width == 32 else torch.int64)
    return np.ascontiguousarray(x).reshape(-1).view(np.int32 if carrier.width == 32 else np.int64)


def values_of(bits: Any, like: Any) -> Any:
    """The inverse of `flat_bits`: the dtype and shape of `like`."""
    return bits.view(like.dtype).reshape(like.shape)


def words_like(x: Any, seed: int, *, offset: int, stream: int, call: int) -> Any:
    """One 32-bit word for each element, in order, as non-negative int64 on the device of `x`."""
    if isinstance(x, Tensor):
        words = random_words_torch(x.numel(), seed, offset=offset, stream=stream, call=call, device=x.device)
        return words.long() & 0xFFFFFFFF
    return random_words(x.size, seed, offset=offset, stream=stream, call=call).astype(np.int64)


def draw_like(x: Any, seed: int, offset: int, call: int, carrier: Carrier) -> Any:
    """Random integers of width−1 bits, one an element; a wider carrier only appends low bits."""
    words = words_like(x, seed, offset=offset, stream=ROUNDING_STREAM, call=call)
    if carrier.width == 32:
        xp = module_of(x, "draw_like")
        return cast(words >> 1, xp.int32)
    low = words_like(x, seed, offset=offset, stream=ROUNDING_LOW_STREAM, call=call)
    return (words << 31) | (low >> 1)
