"""Attention along one axis of a tensor at a time.

x has N = S_1 … S_d elements. Attention_k lets an element look at those that share all its coordinates but the
k-th; masked, at those whose k-th coordinate is not larger. One block along each axis lets every element see
every other. The scores cost O(N (S_1 + … + S_d)) instead of O(N^2).

Source: Ho et al. 2019, "Axial Attention in Multidimensional Transformers", section 3.
"""

from collections.abc import Collection, Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from shoestring.layers.axial.along_axis import AlongAxis, check_axis, check_rank
from shoestring.layers.axial.line_attention import AttentionBlock, LineAttention


class AxialAttention(AlongAxis):
    """Multi-head attention along one axis; `causal` hides what lies behind an element on it.

    Shapes: x (batch, size_0, …, size_{n_axes-1}, dim) -> the same. Axis 0 is the first after the batch.
    Raises: ValueError for an axis that is none of the `n_axes`, a dim that n_heads does not divide, or an
    input of another rank or feature size.
    """

    layer: LineAttention

    def __init__(
        self,
        dim: int,
        n_heads: int,
        *,
        axis: int,
        n_axes: int,
        causal: bool = False,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__(LineAttention(dim, n_heads, causal=causal, qkv_bias=qkv_bias), axis, n_axes)

    def forward(self, x: Float[Tensor, "batch *sizes dim"]) -> Float[Tensor, "batch *sizes dim"]:
        check_rank(x, self.n_axes)
        check_features(x, self.layer.out.out_features)
        return super().forward(x)


class AxialBlocks(nn.Module):
    """Residual blocks of attention and an mlp, along each of `axes` in turn, `repeats` times over.

    Shapes: x (batch, size_0, …, size_{n_axes-1}, dim) -> the same. `axes=(1, 0)` of a picture is a row block
    (along its width), then a column block (along its height). `masked` names the axis along which nothing
    behind an element is seen: with axis 0 masked, an element sees all columns of the rows up to its own.

    Raises: ValueError for no axes, one that is none of the `n_axes`, a masked one that is not among `axes`,
    more than one masked (an element would see a corner of what comes before it, and no more), or what
    `AttentionBlock` and the input's shape forbid.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        axes: Sequence[int],
        *,
        n_axes: int,
        masked: Collection[int] = (),
        repeats: int = 1,
        hdim_factor: float | int = 1,
        dropout: float | int = 0.0,
    ) -> None:
        super().__init__()
        if not axes:
            raise ValueError("axes is empty; name the axes that the blocks run along, e.g. (1, 0)")
        if repeats < 0:
            raise ValueError(f"repeats={repeats} must be 0 or more")
        if len(set(masked)) > 1:
            raise ValueError(
                f"masked={tuple(masked)} masks more than one axis: an element would miss part of what "
                "comes before it; mask one axis, and give the other to blocks of its own"
            )
        for axis in (*axes, *masked):
            check_axis(axis, n_axes)
        if strange := set(masked) - set(axes):
            raise ValueError(
                f"masked={tuple(masked)} holds {min(strange)}, but the blocks run along axes={tuple(axes)}"
            )
        self.dim, self.n_axes = dim, n_axes
        self.blocks = nn.ModuleList(
            AlongAxis(
                AttentionBlock(
                    LineAttention(dim, n_heads, causal=axis in masked),
                    dim,
                    hdim_factor=hdim_factor,
                    dropout=dropout,
                ),
                axis,
                n_axes,
            )
            for _ in range(repeats)
            for axis in axes
        )

    def forward(self, x: Float[Tensor, "batch *sizes dim"]) -> Float[Tensor, "batch *sizes dim"]:
        check_rank(x, self.n_axes)
        check_features(x, self.dim)
        for block in self.blocks:
            x = block(x)
        return x

    @property
    def line_blocks(self) -> list[AttentionBlock]:
        """The blocks in order, as they run on lines of (batch, seq, dim)."""
        return [cast(AttentionBlock, block.layer) for block in self.blocks]


def check_features(x: Tensor, dim: int) -> None:
    """Raises: ValueError where the last axis does not hold `dim` features."""
    if x.shape[-1] != dim:
        raise ValueError(
            f"x has shape {tuple(x.shape)}: {x.shape[-1]} features on its last axis, not dim={dim}; "
            "features come last"
        )


def line_mask(sizes: Sequence[int], axis: int, *, causal: bool = False) -> Bool[Tensor, "elements elements"]:
    """Which of all elements (rows) sees which (columns): those that share all coordinates but one."""
    coordinates = torch.stack(
        [c.flatten() for c in torch.meshgrid(*map(torch.arange, sizes), indexing="ij")], dim=-1
    )
    same = coordinates[:, None] == coordinates[None]
    same[..., axis] = coordinates[:, None, axis] >= coordinates[None, :, axis] if causal else True
    return same.all(-1)


def naive_axial_attention(
    attention: AxialAttention, x: Float[Tensor, "batch *sizes dim"]
) -> Float[Tensor, "batch *sizes dim"]:
    """Attention over all elements with everything off the line hidden: the meaning of `AxialAttention`."""
    layer = attention.layer
    q, k, v = (
        part.flatten(1, -2).unflatten(-1, (layer.n_heads, -1)).transpose(1, 2)
        for part in layer.qkv(x).chunk(3, -1)
    )
    seen = line_mask(x.shape[1:-1], attention.axis, causal=layer.causal).to(x.device)
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return layer.out(out).view(x.shape)
