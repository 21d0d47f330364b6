"""The inner part of a Mamba mixer: convolution, projections of what is read to dt, B and C, and the scan.

Source: Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", section 3.4,
figure 3; initial values: section 3.6.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.kernels.causal_conv1d import causal_conv1d, prefill_conv1d, step_conv1d
from shoestring.kernels.selective_scan import selective_scan, selective_step
from shoestring.layers.parameter_hint import ParameterHint
from shoestring.layers.state import State

Sequence = Float[Tensor, "batch seq channels"]


class SelectiveBranch(nn.Module):
    """x and z to y, each (batch, seq, d_inner): one direction of a Mamba mixer between its two projections.

    SiLU of a causal convolution gives x; of it come dt (through `dt_rank` channels), B and C; the scan's
    output is gated by SiLU(z). `reverse` runs convolution and scan from the last position to the first. The
    step sizes, the decays and the state are float32 whatever autocast says.
    """

    parameter_hints: ClassVar = {
        "A_log": ParameterHint(weight_decay=0.0),
        "D": ParameterHint(weight_decay=0.0),
    }

    def __init__(self, d_inner: int, d_state: int, d_conv: int, dt_rank: int) -> None:
        super().__init__()
        self.d_state, self.dt_rank = d_state, dt_rank
        self.conv_weight = nn.Parameter(torch.empty(d_inner, d_conv))
        self.conv_bias = nn.Parameter(torch.empty(d_inner))
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1).float().log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        for part in (self.conv_weight, self.conv_bias):
            nn.init.uniform_(part, -(d_conv**-0.5), d_conv**-0.5)
        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        self.dt_proj.bias.data.copy_(initial_dt_bias(d_inner))

    def forward(self, x: Sequence, z: Sequence, *, reverse: bool = False) -> Sequence:
        x = causal_conv1d(x, self.conv_weight, self.conv_bias, silu=True, reverse=reverse)
        dt, B, C = self.select(x)
        return selective_scan(
            x, dt, self.A(), B, C, self.D, z, self.dt_proj.bias, dt_softplus=True, reverse=reverse
        )[0]

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Zeros: the last inputs of the convolution in `dtype`, the state of the scan in at least float32."""
        d_inner, width = self.conv_weight.shape
        place = self.D.device if device is None else device
        dtype = self.D.dtype if dtype is None else dtype
        state_dtype = torch.promote_types(dtype, torch.float32)
        return {
            "conv": torch.zeros(batch, width - 1, d_inner, device=place, dtype=dtype),
            "ssm": torch.zeros(batch, d_inner, self.d_state, device=place, dtype=state_dtype),
        }

    def prefill(self, x: Sequence, z: Sequence, state: State) -> tuple[Sequence, State]:
        """The outputs after `state`, and the state after them."""
        x, conv = prefill_conv1d(x, state["conv"], self.conv_weight, self.conv_bias, silu=True)
        dt, B, C = self.select(x)
        y, ssm = selective_scan(
            x, dt, self.A(), B, C, self.D, z, self.dt_proj.bias, state["ssm"], dt_softplus=True
        )
        return y, {"conv": conv, "ssm": ssm}

    def step(
        self, x: Float[Tensor, "batch channels"], z: Float[Tensor, "batch channels"], state: State
    ) -> tuple[Float[Tensor, "batch channels"], State]:
        """One position of `prefill`."""
        x, conv = step_conv1d(x, state["conv"], self.conv_weight, self.conv_bias, silu=True)
        dt, B, C = (part[:, 0] for part in self.select(x[:, None]))
        y, ssm = selective_step(
            x, dt, self.A(), B, C, state["ssm"], self.D, z, self.dt_proj.bias, dt_softplus=True
        )
        return y, {"conv": conv, "ssm": ssm}

    def A(self) -> Float[Tensor, "d_inner d_state"]:
        """The decay rates, -exp(A_log), in at least float32."""
        return -self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp()

    def select(self, x: Sequence) -> tuple[Tensor, Tensor, Tensor]:
        """dt (batch, seq, d_inner) before its bias and softplus; B and C (batch, seq, 1, d_state)."""
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], -1)
        with torch.autocast(x.device.type, enabled=False):
            exact = torch.promote_types(dt.dtype, torch.float32)
            dt = F.linear(dt.to(exact), self.dt_proj.weight.to(exact))
        return dt, B.unsqueeze(2), C.unsqueeze(2)


def initial_dt_bias(
    channels: int, dt_min: float = 1e-3, dt_max: float = 0.1, floor: float = 1e-4
) -> Float[Tensor, " channels"]:
    """The inverse softplus of step sizes drawn log-uniformly from dt_min .. dt_max, not below `floor`.

    Draws from torch's global generator, as layers' initial weights do.
    """
    dt = (torch.rand(channels) * math.log(dt_max / dt_min) + math.log(dt_min)).exp().clamp(min=floor)
    return dt + (-torch.expm1(-dt)).log()
