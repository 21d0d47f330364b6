"""Mamba mixers that read a sequence in both directions, for patches of a picture.

Source: Zhu et al. 2024, "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State
Space Model", section 3.3, algorithm 1.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoestring.kernels.causal_conv1d import causal_conv1d
from shoestring.kernels.selective_scan import selective_scan
from shoestring.layers.mamba import check_sizes
from shoestring.layers.parameter_hint import ParameterHint
from shoestring.layers.selective_branch import SelectiveBranch

Sequence = Float[Tensor, "batch seq d_model"]


class BidirectionalMamba(nn.Module):
    """out_proj((y_f + y_b) / 2), where each direction has a convolution, projections and decays of its own.

    Both read x and z of one input projection; direction b reads them from the last position to the first. No
    copy is reversed: convolution and scan run backwards. divide=False adds y_f and y_b without halving.
    layer_scale: the initial value of a factor for each channel of the output; None for no factor.
    original_init: as the authors' code leaves direction b, dt_proj with torch's default weights and a bias of
    0 (step sizes about 0.69); by default both directions start alike.

    Shapes: (batch, seq, d_model) to the same. Raises: ValueError for a size below 1.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        divide: bool = True,
        layer_scale: float | None = None,
        original_init: bool = False,
    ) -> None:
        super().__init__()
        dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        check_sizes(d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand, dt_rank=dt_rank)
        d_inner = expand * d_model
        self.divide = divide
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.forwards = SelectiveBranch(d_inner, d_state, d_conv, dt_rank)
        self.backwards = SelectiveBranch(d_inner, d_state, d_conv, dt_rank)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self.scale = None if layer_scale is None else nn.Parameter(torch.full((d_model,), layer_scale))
        self.parameter_hints = {} if layer_scale is None else {"scale": ParameterHint(weight_decay=0.0)}
        if original_init:
            self.backwards.dt_proj.reset_parameters()
            nn.init.zeros_(self.backwards.dt_proj.bias)

    def forward(self, hidden: Sequence) -> Sequence:
        x, z = self.in_proj(hidden).chunk(2, -1)
        y = self.forwards(x, z) + self.backwards(x, z, reverse=True)
        return _project(y, self.out_proj, self.divide, self.scale)


class SharedBidirectionalMamba(nn.Module):
    """As `BidirectionalMamba`, with one convolution and one set of projections; only the decays differ.

    The scan backwards reads what the forward convolution gave: the ablation "v1" of the authors.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        divide: bool = True,
    ) -> None:
        super().__init__()
        dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        check_sizes(d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand, dt_rank=dt_rank)
        d_inner = expand * d_model
        self.divide = divide
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.branch = SelectiveBranch(d_inner, d_state, d_conv, dt_rank)
        self.A_log_backwards = nn.Parameter(self.branch.A_log.detach().clone())
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self.parameter_hints = {"A_log_backwards": ParameterHint(weight_decay=0.0)}

    def forward(self, hidden: Sequence) -> Sequence:
        x, z = self.in_proj(hidden).chunk(2, -1)
        branch = self.branch
        x = causal_conv1d(x, branch.conv_weight, branch.conv_bias, silu=True)
        dt, B, C = branch.select(x)
        A_backwards = -self.A_log_backwards.to(branch.A().dtype).exp()
        y = torch.zeros_like(x)
        for A, reverse in ((branch.A(), False), (A_backwards, True)):
            y = (
                y
                + selective_scan(
                    x, dt, A, B, C, branch.D, z, branch.dt_proj.bias, dt_softplus=True, reverse=reverse
                )[0]
            )
        return _project(y, self.out_proj, self.divide, None)


def _project(y: Tensor, out_proj: nn.Linear, divide: bool, scale: Tensor | None) -> Tensor:
    out = out_proj(y / 2 if divide else y)
    return out if scale is None else out * scale
