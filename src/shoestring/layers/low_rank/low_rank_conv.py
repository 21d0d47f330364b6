"""A convolution as a thin one followed by a 1x1: a convolutional encoder and decoder.

The first keeps kernel, stride, padding, dilation and groups and has `rank` channels; the second mixes these.
Each group of a grouped convolution is factored alone, since a channel of the encoder sees one group's inputs.

Source: Cahyawijaya 2021, "Greenformers: Improving Computation and Memory Efficiency in Transformer Models via
Low-Rank Approximation"; Jaderberg et al. 2014, "Speeding up Convolutional Neural Networks with Low Rank
Expansions", for the idea.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
_OF_DIMS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d,
}  # fmt: skip
_FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def conv_break_even_rank(in_channels: int, out_channels: int, taps: int, groups: int = 1) -> int:
    """The rank from which two convolutions hold no fewer weights than one; `taps` is the kernel's size.

    That is ⌊i t o / (i t + o/g)⌋ with i = in/groups inputs of a channel: i t o/(i t + o) without groups.
    """
    fan_in = in_channels // groups * taps
    return fan_in * out_channels // (fan_in + out_channels // groups)


def kernel_blind_break_even_rank(in_channels: int, out_channels: int, taps: int, groups: int = 1) -> int:
    """The rank limit of the package `greenformer`, which leaves the kernel's size out: ⌊i o' / (i + o')⌋.

    o' = out/groups. At or below the true break-even of `conv_break_even_rank`, far below for large kernels.
    """
    outputs = out_channels // groups
    return in_channels * outputs // (in_channels + outputs)


def rank_of_groups(rank: int, groups: int) -> int:
    """The rank rounded up to a multiple of `groups`."""
    return -(-rank // groups) * groups


class LowRankConv(nn.Module):
    """y = up(down(x)) over 1, 2 or 3 dimensions: `down` (rank, in/groups, *kernel), `up` 1x1 with the bias.

    Shapes: x (batch, in_channels, *space) -> y (batch, out_channels, *space'), as the one replaced.

    Raises: ValueError for dims other than 1, 2, 3, or a rank that is not a positive multiple of `groups`.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        rank: int,
        *,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if dims not in _OF_DIMS:
            raise ValueError(f"dims={dims} must be 1, 2 or 3.")
        if rank < 1 or rank % groups:
            raise ValueError(
                f"rank={rank} must be a positive multiple of groups={groups}, e.g. "
                f"{rank_of_groups(max(rank, 1), groups)}."
            )
        kind: Any = _OF_DIMS[dims]
        self.dims, self.rank, self.groups = dims, rank, groups
        self.in_channels, self.out_channels = in_channels, out_channels
        made: dict[str, Any] = {"groups": groups, "dtype": dtype, "device": device}
        self.down = kind(
            in_channels, rank, kernel_size, stride=stride, padding=padding, dilation=dilation,
            padding_mode=padding_mode, bias=False, **made,
        )  # fmt: skip
        self.up = kind(rank, out_channels, 1, bias=bias, **made)

    @classmethod
    def of(
        cls,
        conv: Conv,
        down: Float[Tensor, "groups rank_per_group fan_in"],
        up: Float[Tensor, "groups out_per_group rank_per_group"],
    ) -> "LowRankConv":
        """What takes the place of `conv`, by factors of each group's matrix (out/groups, in/groups·taps).

        The bias is copied.
        """
        groups, per_group, _ = down.shape
        layer = cls(
            len(conv.kernel_size), conv.in_channels, conv.out_channels, conv.kernel_size, groups * per_group,
            stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=groups,
            bias=conv.bias is not None, padding_mode=conv.padding_mode, dtype=down.dtype, device="meta",
        )  # fmt: skip
        layer.down.weight = nn.Parameter(down.reshape(-1, *conv.weight.shape[1:]).contiguous())
        ones = (1,) * layer.dims
        layer.up.weight = nn.Parameter(up.reshape(conv.out_channels, per_group, *ones).contiguous())
        if conv.bias is not None:
            layer.up.bias = nn.Parameter(conv.bias.detach().clone())
        return layer

    @property
    def weight(self) -> Float[Tensor, "out_channels in_per_group *kernel"]:
        """The kernel that the two make together."""
        down = self.down.weight.reshape(self.groups, self.rank // self.groups, -1)
        up = self.up.weight.reshape(self.groups, self.out_channels // self.groups, -1)
        return (up @ down).reshape(self.out_channels, *self.down.weight.shape[1:])

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias

    def forward(
        self, x: Float[Tensor, "batch in_channels *space"]
    ) -> Float[Tensor, "batch out_channels *out"]:
        return self.up(self.down(x))


def naive_low_rank_conv(
    layer: LowRankConv, x: Float[Tensor, "batch in_channels *space"]
) -> Float[Tensor, "batch out_channels *out"]:
    """One convolution by the product of the factors (zero padding): the meaning of `LowRankConv`."""
    down = layer.down
    return _FUNCTIONS[layer.dims](
        x, layer.weight, layer.bias, down.stride, down.padding, down.dilation, layer.groups
    )


def taps_of(conv: Conv) -> int:
    """How many places a kernel has."""
    return math.prod(conv.kernel_size)
