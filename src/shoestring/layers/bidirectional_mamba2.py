"""A mixer of both directions with one decay for each head: Vision Mamba's with the scan of Mamba-2.

Another model than `BidirectionalMamba`, of other weights: matrix products in place of a scan by channel.

Source: Zhu et al. 2024, "Vision Mamba", algorithm 1 (both directions); Dao and Gu 2024, "Transformers are
SSMs", section 6 (the scan).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.kernels.causal_conv1d import causal_conv1d
from shoestring.kernels.ssd import ssd
from shoestring.layers.mamba import check_sizes
from shoestring.layers.parameter_hint import ParameterHint
from shoestring.layers.selective_branch import initial_dt_bias

Sequence = Float[Tensor, "batch seq channels"]


class HeadDecayBranch(nn.Module):
    """x and z to y, each (batch, seq, d_inner): one direction, with one step size and decay for each head.

    `reverse` runs it from the last position to the first.
    """

    def __init__(self, d_inner: int, d_state: int, d_conv: int, head_dim: int) -> None:
        super().__init__()
        self.d_state, self.heads = d_state, d_inner // head_dim
        bound = d_conv**-0.5
        self.conv_weight = nn.Parameter(torch.empty(d_inner, d_conv).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.empty(d_inner).uniform_(-bound, bound))
        self.x_proj = nn.Linear(d_inner, self.heads + 2 * d_state, bias=False)
        self.dt_bias = nn.Parameter(initial_dt_bias(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.parameter_hints = {name: ParameterHint(weight_decay=0.0) for name in ("A_log", "D", "dt_bias")}

    def forward(self, x: Sequence, z: Sequence, *, reverse: bool = False) -> Sequence:
        x = causal_conv1d(x, self.conv_weight, self.conv_bias, silu=True, reverse=reverse)
        dt, B, C = self.x_proj(x).split([self.heads, self.d_state, self.d_state], -1)
        exact = torch.promote_types(dt.dtype, torch.float32)
        dt = F.softplus(dt.to(exact) + self.dt_bias.to(exact))
        parts = [x.unflatten(-1, (self.heads, -1)), dt, B.unsqueeze(2), C.unsqueeze(2)]
        x, dt, B, C = (part.flip(1) for part in parts) if reverse else parts
        y, _ = ssd(x, dt, -self.A_log.to(exact).exp(), B, C, self.D)
        y = (y.flip(1) if reverse else y).flatten(2)
        return y * F.silu(z)


class BidirectionalMamba2(nn.Module):
    """out_proj((y_f + y_b) / 2) of two `HeadDecayBranch`es; divide=False adds without halving.

    Shapes: (batch, seq, d_model) to the same. Raises: ValueError for a size below 1 or a head_dim that does
    not divide expand · d_model.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        head_dim: int = 64,
        divide: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand, head_dim=head_dim)
        d_inner = expand * d_model
        if d_inner % head_dim:
            raise ValueError(f"head_dim={head_dim} does not divide expand · d_model = {d_inner}")
        self.divide = divide
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.forwards = HeadDecayBranch(d_inner, d_state, d_conv, head_dim)
        self.backwards = HeadDecayBranch(d_inner, d_state, d_conv, head_dim)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, hidden: Sequence) -> Sequence:
        x, z = self.in_proj(hidden).chunk(2, -1)
        y = self.forwards(x, z) + self.backwards(x, z, reverse=True)
        return self.out_proj(y / 2 if self.divide else y)
