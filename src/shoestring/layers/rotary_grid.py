"""Rotary positions of patches: half of the channels turn with the row, half with the column.

Source: Su et al. 2021, "RoFormer", eq. 34; for pictures as in Fang et al. 2023, "EVA-02", section 2.1.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.layers.patch_embedding import Grid


def rotate_grid(
    patches: Float[Tensor, "batch patches dim"], grid: Grid, base: float = 10000.0
) -> Float[Tensor, "batch patches dim"]:
    """Turn pairs of neighbouring channels by position · base^(-4k / dim), k counting the pairs of an axis.

    Patches go row by row. Raises: ValueError for a dim that 4 does not divide, or another number of patches
    than `grid` has.
    """
    dim = patches.shape[2]
    if dim % 4:
        raise ValueError(f"dim={dim}: a rotation by row and column takes a multiple of 4")
    if patches.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"{patches.shape[1]} patches are no grid of {grid[0]} x {grid[1]}")
    exact = torch.promote_types(patches.dtype, torch.float32)
    rates = base ** (-torch.arange(dim // 4, device=patches.device, dtype=exact) / (dim // 4))
    rows, columns = (torch.arange(size, device=patches.device, dtype=exact)[:, None] * rates for size in grid)
    angles = torch.cat([rows.repeat_interleave(grid[1], 0), columns.repeat(grid[0], 1)], 1)
    cos, sin = angles.cos(), angles.sin()
    even, odd = patches.to(exact).unflatten(2, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return turned.flatten(2).to(patches.dtype)
