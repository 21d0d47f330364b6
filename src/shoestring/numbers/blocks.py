"""Blocks of consecutive elements along the last axis, the axis that products are summed over."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def split_blocks(x: Shaped[Tensor, "..."], block_size: int, pad: bool) -> Float[Tensor, "*rows blocks size"]:
    """`x` as blocks of `block_size`; with pad=True the last one is filled with zeros.

    Raises: ValueError for a scalar, or an axis that the block size does not divide when pad is False;
    TypeError unless float32 or float64.
    """
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
        kind = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"blocks are made of float32 or float64 torch tensors, not {kind}; cast explicitly")
    if x.ndim == 0:
        raise ValueError("a scalar has no axis to divide into blocks; use x.reshape(1)")
    missing = -x.shape[-1] % block_size
    if missing and not pad:
        raise ValueError(
            f"block_size={block_size} does not divide the last axis of {x.shape[-1]}; use pad=True or "
            f"another size"
        )
    padded = torch.nn.functional.pad(x.detach(), (0, missing))
    return padded.reshape(*x.shape[:-1], padded.shape[-1] // block_size, block_size)


def join_blocks(blocks: Float[Tensor, "*rows blocks size"], count: int) -> Float[Tensor, "*rows count"]:
    """The inverse of `split_blocks`, padding removed."""
    return blocks.flatten(-2)[..., :count].contiguous()
