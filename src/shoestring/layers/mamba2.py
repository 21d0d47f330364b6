"""The Mamba-2 mixer: one decay for each head, matrix products instead of a scan over every channel.

Source: Dao and Gu 2024, "Transformers are SSMs", section 7.1, figure 6.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.kernels.causal_conv1d import causal_conv1d, prefill_conv1d, step_conv1d
from shoestring.kernels.ssd import ssd, ssd_step
from shoestring.layers.mamba import check_sizes
from shoestring.layers.parameter_hint import ParameterHint
from shoestring.layers.selective_branch import initial_dt_bias
from shoestring.layers.state import State

Sequence = Float[Tensor, "batch seq d_model"]


class GatedRMSNorm(nn.Module):
    """y SiLU(z), divided by its root mean square within each of `groups` spans of channels; a weight."""

    def __init__(self, dim: int, groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.parameter_hints = {"weight": ParameterHint(weight_decay=0.0)}

    def forward(
        self, y: Float[Tensor, "*batch dim"], z: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        exact = torch.promote_types(y.dtype, torch.float32)
        gated = (y.to(exact) * F.silu(z.to(exact))).unflatten(-1, (self.groups, -1))
        normed = gated * (gated.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return (normed.flatten(-2) * self.weight).to(y.dtype)


class Mamba2Mixer(nn.Module):
    """(batch, seq, d_model) to the same by `ssd`; `Recurrent` by `init_state`, `prefill` and `step`.

    [z, x, B, C, dt] = in_proj(hidden); x, B and C go through one causal convolution with SiLU; the output of
    the scan is gated by z and normalised before out_proj. Step sizes, decays and the state are float32.

    Raises: ValueError for a size below 1, a head_dim that does not divide expand · d_model, or groups that do
    not divide the heads.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        head_dim: int = 64,
        n_groups: int = 1,
    ) -> None:
        super().__init__()
        check_sizes(
            d_model=d_model,
            d_state=d_state,
            d_conv=d_conv,
            expand=expand,
            head_dim=head_dim,
            n_groups=n_groups,
        )
        d_inner = expand * d_model
        if d_inner % head_dim:
            raise ValueError(f"head_dim={head_dim} does not divide expand · d_model = {d_inner}")
        heads = d_inner // head_dim
        if heads % n_groups:
            raise ValueError(f"n_groups={n_groups} does not divide {heads} heads")
        self.d_state, self.head_dim, self.n_groups, self.heads = d_state, head_dim, n_groups, heads
        conv_dim = d_inner + 2 * n_groups * d_state
        self.in_proj = nn.Linear(d_model, d_inner + conv_dim + heads, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(conv_dim, d_conv).uniform_(-(d_conv**-0.5), d_conv**-0.5))
        self.conv_bias = nn.Parameter(torch.empty(conv_dim).uniform_(-(d_conv**-0.5), d_conv**-0.5))
        self.dt_bias = nn.Parameter(initial_dt_bias(heads))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = GatedRMSNorm(d_inner, n_groups)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self.parameter_hints = {name: ParameterHint(weight_decay=0.0) for name in ("A_log", "D", "dt_bias")}

    def forward(self, hidden: Sequence) -> Sequence:
        z, xBC, dt = self._project(hidden)
        xBC = causal_conv1d(xBC, self.conv_weight, self.conv_bias, silu=True)
        x, B, C = self._split(xBC)
        y, _ = ssd(x, dt, self.A(), B, C, self.D)
        return self.out_proj(self.norm(y.flatten(-2), z))

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Before the first token: "conv" (batch, d_conv - 1, channels), "ssm" (batch, heads, head_dim, n)."""
        channels, width = self.conv_weight.shape
        place = self.D.device if device is None else device
        dtype = self.D.dtype if dtype is None else dtype
        shape = batch, self.heads, self.head_dim, self.d_state
        return {
            "conv": torch.zeros(batch, width - 1, channels, device=place, dtype=dtype),
            "ssm": torch.zeros(shape, device=place, dtype=torch.promote_types(dtype, torch.float32)),
        }

    def prefill(self, x: Sequence, state: State) -> tuple[Sequence, State]:
        """The outputs of these tokens, which follow those that `state` has seen, and the state after them."""
        z, xBC, dt = self._project(x)
        xBC, conv = prefill_conv1d(xBC, state["conv"], self.conv_weight, self.conv_bias, silu=True)
        inner, B, C = self._split(xBC)
        y, ssm = ssd(inner, dt, self.A(), B, C, self.D, state["ssm"])
        return self.out_proj(self.norm(y.flatten(-2), z)), {"conv": conv, "ssm": ssm}

    def step(
        self, x: Float[Tensor, "batch d_model"], state: State
    ) -> tuple[Float[Tensor, "batch d_model"], State]:
        """The output of one more token, and the state after it."""
        z, xBC, dt = self._project(x)
        xBC, conv = step_conv1d(xBC, state["conv"], self.conv_weight, self.conv_bias, silu=True)
        inner, B, C = self._split(xBC)
        y, ssm = ssd_step(inner, dt, self.A(), B, C, state["ssm"], self.D)
        return self.out_proj(self.norm(y.flatten(-2), z)), {"conv": conv, "ssm": ssm}

    def A(self) -> Float[Tensor, " heads"]:
        """The decay rates, -exp(A_log), in at least float32."""
        return -self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp()

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z, what is convolved, and the step sizes."""
        d_inner = self.heads * self.head_dim
        z, xBC, dt = self.in_proj(hidden).split([d_inner, len(self.conv_weight), self.heads], -1)
        exact = torch.promote_types(dt.dtype, torch.float32)
        return z, xBC, F.softplus(dt.to(exact) + self.dt_bias.to(exact))

    def _split(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x by heads; B and C by groups."""
        states = self.n_groups * self.d_state
        x, B, C = xBC.split([self.heads * self.head_dim, states, states], -1)
        B, C = (part.unflatten(-1, (self.n_groups, self.d_state)) for part in (B, C))
        return x.unflatten(-1, (self.heads, self.head_dim)), B, C
