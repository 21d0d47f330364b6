"""A Mamba mixer with the head structure of grouped-query attention, so that it can take attention's place.

[z, x, B, C] = in_proj(u) of widths d_inner, d_xb, d_xb, d_inner with d_inner = heads · head_dim and
d_xb = kv_heads · head_dim;  dt = softplus(dt_proj(dt_in_proj(u)) + bias).  x, B and C are cut in heads of n
channels; those of x and B are repeated d_inner/d_xb times, as keys and values are in attention.
x ← SiLU(conv(x)).  For channel d of head a:  h_t = exp(dt_t A[d]) h_{t-1} + dt_t x_t B_t[a],
y_t = C_t[a] · h_t + D x_t;  out = out_proj(y · SiLU(z)).  No rotary positions, no norms of queries and keys.

Source: Apriel-H1 (ServiceNow, 2025), hybrid model class of Fast-LLM; Wang et al. 2024, "The Mamba in the
Llama", section 3; Gu and Dao 2023, "Mamba", sections 3.4 and 3.6 (initial values).
"""

import enum
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.kernels.causal_conv1d import causal_conv1d, step_conv1d
from shoestring.kernels.selective_scan import selective_scan
from shoestring.kernels.ssd import ssd
from shoestring.layers.mamba.selective_branch import initial_dt_bias
from shoestring.layers.padded_sequences import Front, by_document, to_front
from shoestring.layers.parameter_hint import ParameterHint
from shoestring.layers.state import State

Sequence = Float[Tensor, "batch seq hidden"]
Present = Bool[Tensor, "batch seq"]
_NO_STEP = -1e4
"""A step size of 0, before the softplus."""


class ScanKind(enum.StrEnum):
    """Which recurrence a mixer runs: that of the paper, or a cheaper one that departs from it."""

    SELECTIVE = "selective"
    """A decay for every channel and state (Mamba)."""
    SSD = "ssd"
    """One decay for each head, n = head_dim, matrix products (Mamba-2). Not in the paper."""


@dataclass(frozen=True)
class MambaShape:
    """Sizes of a mixer beside those it shares with attention.

    d_state: n above. dt_rank: 16 as published. d_inner: may be given, as published configurations do, but is
    always heads · head_dim. Raises: ValueError for a size below 1.
    """

    d_state: int = 16
    d_conv: int = 4
    dt_rank: int = 16
    scan: ScanKind = ScanKind.SELECTIVE
    d_inner: int | None = None

    def __post_init__(self) -> None:
        for name in ("d_state", "d_conv", "dt_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def check(self, n_heads: int, n_kv_heads: int, head_dim: int) -> None:
        """Raises: ValueError where these sizes do not fit the heads, naming the size and what fits."""
        if self.d_inner is not None and self.d_inner != n_heads * head_dim:
            raise ValueError(
                f"d_inner={self.d_inner} must be heads · head_dim = {n_heads} · {head_dim} = "
                f"{n_heads * head_dim}; leave it out"
            )
        if (head_dim * n_kv_heads) % self.d_state:
            raise ValueError(
                f"d_state={self.d_state} does not divide head_dim · kv_heads = {head_dim} · {n_kv_heads}; "
                f"use {head_dim} or a divisor of it"
            )
        if self.scan is ScanKind.SSD and self.d_state != head_dim:
            raise ValueError(f"d_state={self.d_state}: the ssd scan takes head_dim={head_dim} states")


class GroupedMixer(nn.Module):
    """(batch, seq, hidden) to the same; `Recurrent` by `init_state`, `prefill` and `step`.

    What both recurrences share; `grouped_mixer` makes one. The state is "conv", the last d_conv − 1 inputs of
    the convolution (batch, d_conv − 1, d_inner), and "ssm", in at least float32. Step sizes, decays and the
    state are float32 whatever autocast says; A_log and D are kept in it.

    Raises: ValueError as `MambaShape.check`.
    """

    parameter_hints: ClassVar = {
        "A_log": ParameterHint(weight_decay=0.0),
        "D": ParameterHint(weight_decay=0.0),
    }

    def __init__(
        self,
        hidden_size: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        shape: MambaShape,
        rates: tuple[int, ...],
        **made: Any,
    ) -> None:
        super().__init__()
        shape.check(n_heads, n_kv_heads, head_dim)
        self.shape, self.n_heads, self.head_dim = shape, n_heads, head_dim
        self.d_inner, self.d_xb = n_heads * head_dim, n_kv_heads * head_dim
        exact = {**made, "dtype": torch.promote_types(made.get("dtype") or torch.float32, torch.float32)}
        self.in_proj = nn.Linear(hidden_size, 2 * (self.d_inner + self.d_xb), bias=False, **made)
        self.dt_in_proj = nn.Linear(hidden_size, shape.dt_rank, bias=False, **made)
        self.dt_proj = nn.Linear(shape.dt_rank, rates[0], **made)
        self.conv_weight = nn.Parameter(torch.empty(self.d_inner, shape.d_conv, **made))
        self.conv_bias = nn.Parameter(torch.empty(self.d_inner, **made))
        self.A_log = nn.Parameter(torch.empty(rates, **exact))
        self.D = nn.Parameter(torch.empty(rates[0], **exact))
        self.out_proj = nn.Linear(self.d_inner, hidden_size, bias=False, **made)
        self._initialise()

    @property
    def rows(self) -> dict[str, slice]:
        """Which rows of in_proj give z, x, B and C."""
        inner, shared = self.d_inner, self.d_xb
        starts = {"z": (0, inner), "x": (inner, shared), "B": (inner + shared, shared)}
        starts["C"] = (inner + 2 * shared, inner)
        return {name: slice(start, start + width) for name, (start, width) in starts.items()}

    @torch.no_grad()
    def _initialise(self) -> None:
        if self.A_log.is_meta:  # what is never drawn must not move torch's generator
            return
        nn.init.uniform_(self.conv_weight, -(self.shape.d_conv**-0.5), self.shape.d_conv**-0.5)
        nn.init.zeros_(self.conv_bias)
        nn.init.uniform_(self.dt_proj.weight, -(self.shape.dt_rank**-0.5), self.shape.dt_rank**-0.5)
        self.dt_proj.bias.copy_(initial_dt_bias(len(self.dt_proj.bias)))
        self.D.fill_(1.0)
        self._initialise_decays()

    @abstractmethod
    def _initialise_decays(self) -> None: ...

    @abstractmethod
    def scan(
        self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor | None, initial: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """y (batch, seq, d_inner), gated by SiLU(z) if given, and the last state; dt is before its bias."""

    @property
    @abstractmethod
    def state_shape(self) -> tuple[int, ...]:
        """Of "ssm", for one sample."""

    def forward(
        self,
        hidden: Sequence,
        *,
        present: Present | None = None,
        documents: Int[Tensor, "_batch _seq"] | None = None,
    ) -> Sequence:
        """All positions from an empty state.

        present: which positions hold a token; padding, left or right, changes nothing and gives 0. documents:
        the number of each position's document; a new number starts from an empty state.
        Raises: ValueError for both at once, or documents of another shape.
        """
        if documents is None:
            return self._read(hidden, None, present)[0]
        if present is not None:
            raise ValueError("present and documents: give padding a document number of its own instead")
        return by_document(hidden, documents, lambda rows, real: self._read(rows, None, real)[0])

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Before the first token: zeros."""
        place = self.D.device if device is None else device
        dtype = self.in_proj.weight.dtype if dtype is None else dtype
        exact = torch.promote_types(dtype, torch.float32)
        return {
            "conv": torch.zeros(batch, self.shape.d_conv - 1, self.d_inner, device=place, dtype=dtype),
            "ssm": torch.zeros(batch, *self.state_shape, device=place, dtype=exact),
        }

    def prefill(self, x: Sequence, state: State, present: Present | None = None) -> tuple[Sequence, State]:
        """The outputs of these tokens, which follow those that `state` has seen, and the state after them.

        present: as in `forward`; what is no token leaves the state of its sample as it is.
        """
        return self._read(x, state, present)

    def step(
        self, x: Float[Tensor, "batch hidden"], state: State
    ) -> tuple[Float[Tensor, "batch hidden"], State]:
        """The output of one more token, and the state after it."""
        z, inner, B, C, dt = self.project(x[:, None])
        conved, conv = step_conv1d(inner[:, 0], state["conv"], self.conv_weight, self.conv_bias, silu=True)
        y, ssm = self.scan(conved[:, None], dt, B, C, z, state["ssm"])
        return self.out_proj(y[:, 0]), {"conv": conv, "ssm": ssm}

    def project(self, hidden: Sequence) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """z, x, B, C and dt: x repeated to d_inner channels, B (batch, seq, d_xb/n, n), C (…, d_inner/n, n),
        dt before its bias and softplus, in at least float32."""
        n, (batch, seq, _) = self.shape.d_state, hidden.shape
        z, x, B, C = self.in_proj(hidden).split([self.d_inner, self.d_xb, self.d_xb, self.d_inner], -1)
        # At a token a time every call is felt: views instead of repeat_interleave and unflatten.
        heads = x.reshape(batch, seq, -1, 1, n).expand(-1, -1, -1, self.d_inner // self.d_xb, -1)
        x, low = heads.reshape(batch, seq, self.d_inner), self.dt_in_proj(hidden)
        if torch.is_autocast_enabled(hidden.device.type):
            with torch.autocast(hidden.device.type, enabled=False):
                dt = self._steps(low)
        else:
            dt = self._steps(low)
        return z, x, B.reshape(batch, seq, -1, n), C.reshape(batch, seq, -1, n), dt

    def _steps(self, low: Tensor) -> Tensor:
        exact = torch.promote_types(low.dtype, torch.float32)
        return F.linear(low.to(exact), self.dt_proj.weight.to(exact))

    def A(self) -> Float[Tensor, " rates *states"]:
        """The decay rates, −exp(A_log), in at least float32."""
        return -self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp()

    def _read(self, hidden: Sequence, state: State | None, present: Tensor | None) -> tuple[Sequence, State]:
        front = None if present is None else to_front(present)
        hidden = hidden if front is None else front.take(hidden)
        z, x, B, C, dt = self.project(hidden)
        if front is not None:
            x, dt = front.fill(x, 0.0), front.fill(dt, _NO_STEP)
        x, conv = self._convolve(x, state, front)
        if front is not None:
            x = front.fill(x, 0.0)
        y, ssm = self.scan(x, dt, B, C, z, None if state is None else state["ssm"])
        out = self.out_proj(y)
        return (out if front is None else front.put_back(out)), {"conv": conv, "ssm": ssm}

    def _convolve(self, x: Tensor, state: State | None, front: Front | None) -> tuple[Tensor, Tensor]:
        """SiLU of the convolution, and the inputs before what follows."""
        width = self.shape.d_conv
        before = x.new_zeros(len(x), width - 1, self.d_inner) if state is None else state["conv"]
        joined = torch.cat([before.to(x.dtype), x], 1)
        y = causal_conv1d(joined, self.conv_weight, self.conv_bias, silu=True)[:, width - 1 :]
        # Copied: a window on `joined` would keep the whole prompt in memory.
        last = joined[:, x.shape[1] :].clone() if front is None else front.behind(joined, width - 1)
        return y, last.to(before.dtype)


class GroupedMambaMixer(GroupedMixer):
    """The mixer of the paper: a selective scan with a decay for every channel and state.

    "ssm" is (batch, d_inner, d_state). Raises: ValueError as `MambaShape.check`.
    """

    def __init__(
        self,
        hidden_size: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        shape: MambaShape = MambaShape(),
        **made: Any,
    ) -> None:
        rates = n_heads * head_dim, shape.d_state
        super().__init__(hidden_size, n_heads, n_kv_heads, head_dim, shape, rates, **made)

    def _initialise_decays(self) -> None:
        self.A_log.copy_(torch.arange(1, self.shape.d_state + 1).log().expand_as(self.A_log))

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Of "ssm", for one sample."""
        return self.d_inner, self.shape.d_state

    def scan(
        self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor | None, initial: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """y (batch, seq, d_inner), gated by SiLU(z) if given, and the last state; dt is before its bias."""
        return selective_scan(
            x, dt.to(x.dtype) if x.dtype == torch.float64 else dt, self.A(), B, C, self.D, z,
            self.dt_proj.bias, initial, dt_softplus=True,
        )  # fmt: skip


class GroupedSsdMixer(GroupedMixer):
    """Departs from the paper: one decay for each head, so that chunks are matrix products.

    n is head_dim, which contains linear attention exactly. "ssm" is (batch, heads, head_dim, d_state).
    Raises: ValueError as `MambaShape.check`.
    """

    def __init__(
        self, hidden_size: int, n_heads: int, n_kv_heads: int, head_dim: int, shape: MambaShape, **made: Any
    ) -> None:
        super().__init__(hidden_size, n_heads, n_kv_heads, head_dim, shape, (n_heads,), **made)

    def _initialise_decays(self) -> None:
        nn.init.uniform_(self.A_log, 1, 16)
        self.A_log.log_()

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Of "ssm", for one sample."""
        return self.n_heads, self.head_dim, self.shape.d_state

    def scan(
        self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor | None, initial: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """y (batch, seq, d_inner), gated by SiLU(z) if given, and the last state; dt is before its bias."""
        steps = F.softplus(dt + self.dt_proj.bias.to(dt.dtype))
        y, last = ssd(x.unflatten(-1, (self.n_heads, -1)), steps, self.A(), B, C, self.D, initial)
        y = y.flatten(-2)
        return (y if z is None else y * F.silu(z)), last


def grouped_mixer(
    hidden_size: int, n_heads: int, n_kv_heads: int, head_dim: int, shape: MambaShape, **made: Any
) -> GroupedMixer:
    """The mixer with the recurrence that `shape.scan` names. made: device and dtype.

    Raises: ValueError as `MambaShape.check`.
    """
    kinds = {ScanKind.SELECTIVE: GroupedMambaMixer, ScanKind.SSD: GroupedSsdMixer}
    return kinds[shape.scan](hidden_size, n_heads, n_kv_heads, head_dim, shape, **made)


def naive_grouped_mamba(mixer: GroupedMambaMixer, hidden: Sequence) -> Sequence:
    """The equations above, token after token and head after head."""
    n, repeats = mixer.shape.d_state, mixer.d_inner // mixer.d_xb
    weights = {name: mixer.in_proj.weight[rows] for name, rows in mixer.rows.items()}
    h = hidden.new_zeros(len(hidden), mixer.d_inner, n)
    inputs: list[Tensor] = []
    outputs = []
    for u in hidden.unbind(1):
        z, x, B, C = (u @ weights[name].T for name in ("z", "x", "B", "C"))
        x, B = (
            torch.cat([head for head in part.split(n, -1) for _ in range(repeats)], -1) for part in (x, B)
        )
        inputs.append(x)
        taps = zip(reversed(inputs), reversed(mixer.conv_weight.unbind(1)), strict=False)
        x = F.silu(sum((seen * weight for seen, weight in taps), mixer.conv_bias))
        dt = F.softplus(mixer.dt_proj(mixer.dt_in_proj(u)))
        B, C = (part.unflatten(-1, (-1, n)).repeat_interleave(n, 1) for part in (B, C))
        h = (dt[..., None] * -mixer.A_log.exp()).exp() * h + (dt * x)[..., None] * B
        y = (C * h).sum(-1) + mixer.D * x
        outputs.append((y * F.silu(z)) @ mixer.out_proj.weight.T)
    return torch.stack(outputs, 1)
