"""A sequence layer run along one axis of a tensor with many: every line of that axis is a sequence.

With S elements along each of d axes, a layer that costs O(n^2) for n elements costs O(S^(d+1)) here instead
of O(S^2d): attention along one axis is S^(d-1) times cheaper than over all of them.

Source: Ho et al. 2019, "Axial Attention in Multidimensional Transformers", section 3.1.
"""

import math

from jaxtyping import Float
from torch import Tensor, nn


def to_lines(x: Float[Tensor, "batch *sizes dim"], axis: int) -> Float[Tensor, "lines length dim"]:
    """All lines of one axis (0 is the first after the batch) as a batch of sequences.

    A view where the strides allow one: always for the last axis of a contiguous tensor, and for either of two
    axes of a single sample. The order of the lines is that of the other coordinates, batch first.
    """
    return x.movedim(axis + 1, -2).reshape(-1, x.shape[axis + 1], x.shape[-1])


def from_lines(
    lines: Float[Tensor, "lines length dim"], axis: int, batch: int, sizes: tuple[int, ...]
) -> Float[Tensor, "batch *sizes dim"]:
    """What `to_lines` took apart, for a tensor of this batch and these sizes; always a view."""
    others = sizes[:axis] + sizes[axis + 1 :]
    return lines.view(batch, *others, sizes[axis], lines.shape[-1]).movedim(-2, axis + 1)


class AlongAxis(nn.Module):
    """Runs `layer`, which maps (batch, seq, dim) to (batch, seq, dim_out), along one axis of many.

    Shapes: x (batch, size_0, …, size_{n_axes-1}, dim) -> the same with dim_out. The result is a view whose
    lines lie together in memory, so that a second layer along the same axis copies nothing.
    Raises: ValueError for an axis that is not one of the `n_axes`, or an input of another rank.
    """

    def __init__(self, layer: nn.Module, axis: int, n_axes: int) -> None:
        super().__init__()
        check_axis(axis, n_axes)
        self.layer = layer
        self.axis = axis
        self.n_axes = n_axes

    def forward(self, x: Float[Tensor, "batch *sizes dim"]) -> Float[Tensor, "batch *sizes dim_out"]:
        check_rank(x, self.n_axes)
        sizes = tuple(x.shape[1:-1])
        return from_lines(self.layer(to_lines(x, self.axis)), self.axis, x.shape[0], sizes)

    def extra_repr(self) -> str:
        return f"axis={self.axis}, n_axes={self.n_axes}"


def check_axis(axis: int, n_axes: int) -> None:
    """Raises: ValueError for an axis outside 0 .. n_axes - 1."""
    if n_axes < 1:
        raise ValueError(f"n_axes={n_axes} must be 1 or more")
    if axis == n_axes:
        raise ValueError(f"axis={axis} is the feature axis; a layer runs along one of 0 … {n_axes - 1}")
    if not 0 <= axis < n_axes:
        raise ValueError(f"axis={axis} must be one of 0 … {n_axes - 1}; the batch is not counted")


def check_rank(x: Tensor, n_axes: int) -> None:
    """Raises: ValueError for a tensor that is not (batch, n_axes sizes, dim), or has nothing in it."""
    if x.dim() != n_axes + 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, {x.dim()} dimensions; with n_axes={n_axes} it must have "
            f"{n_axes + 2}: batch, {n_axes} sizes, features last"
        )
    if not math.prod(x.shape):
        raise ValueError(f"x has shape {tuple(x.shape)}; no size may be 0")
