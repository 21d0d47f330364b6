"""Multi-head damped exponential moving average: a linear recurrence over time, a handful of states a channel.

For channel d and state n, with p = sigmoid(delta), a = sigmoid(alpha) and q = 1 − p a,

    h_t = q h_(t−1) + p beta x_t
    y_t = sum_n gamma_n h_(t,n) / sqrt(N) + omega x_t,

which is a convolution with k_l = sum_n gamma_n p_n beta_n q_n^l / sqrt(N): a state space with real poles.

Source: Ma et al. 2023, "Mega: Moving Average Equipped Gated Attention", section 3.1 and appendix A.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from shoestring.kernels.damped_averages import damped_averages, why_not
from shoestring.kernels.fft_convolution import fft_convolve
from shoestring.kernels.vandermonde import real_vandermonde
from shoestring.layers.state import State
from shoestring.notices import notice_fallback

_STATE_CHUNK = 128
"""Tokens whose powers are written out at a time when a state is brought forward."""
_NOTHING = -80.0
"""Logarithm of a decay after which nothing is left in float32 or float64. A fresh average is there after some
400 tokens, and its convolution is not twice as long as the sequence; one that learnt to remember, later."""


class DampedEMA(nn.Module):
    """y = EMA(x), (batch, seq, d_model) -> (batch, seq, d_model), worked out in float32 at least.

    n_states: averages a channel (16 in the paper). bidirectional: a second set of parameters looks ahead;
    lag 0 counts in both. truncation: taps of the kernel that are kept, None for all of them.
    The recurrence (`init_state`, `prefill`, `step`) needs one direction and the whole kernel.
    Raises: ValueError for a size below 1.
    """

    delta: Tensor
    alpha: Tensor
    beta: Tensor
    gamma: Tensor

    def __init__(
        self, d_model: int, n_states: int = 16, *, bidirectional: bool = False, truncation: int | None = None
    ) -> None:
        super().__init__()
        for name, value in (("d_model", d_model), ("n_states", n_states), ("truncation", truncation)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.d_model, self.n_states = d_model, n_states
        self.bidirectional, self.truncation = bidirectional, truncation
        shape = (2 if bidirectional else 1, d_model, n_states)
        for name in ("delta", "alpha", "beta", "gamma"):
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.omega = nn.Parameter(torch.empty(d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normals as in Mega; the signs of beta alternate over the states."""
        for parameter, std in ((self.delta, 0.2), (self.alpha, 0.2), (self.beta, 0.02)):
            _truncated_normal(parameter, std)
        for parameter in (self.gamma, self.omega):
            _truncated_normal(parameter, 1.0)
        with torch.no_grad():
            self.beta += 1.0 - 2.0 * (torch.arange(self.n_states, device=self.beta.device) % 2)

    def coefficients(
        self,
    ) -> tuple[
        Float[Tensor, "directions d n"], Float[Tensor, "directions d n"], Float[Tensor, "directions d n"]
    ]:
        """What enters a state (p beta), ln q of its decay, and what is read from it (gamma / sqrt(N))."""
        delta, alpha, beta, gamma = (
            parameter.to(_at_least_float32(parameter))
            for parameter in (self.delta, self.alpha, self.beta, self.gamma)
        )
        p = torch.sigmoid(delta)
        return p * beta, torch.log1p(-p * torch.sigmoid(alpha)), gamma / math.sqrt(self.n_states)

    def kernel(self, length: int) -> Float[Tensor, "directions d taps"]:
        """k_l for l < `length`, or fewer taps where it is truncated or nothing is left of any average."""
        taps = length if self.truncation is None else min(length, self.truncation)
        into, log_decay, out = self.coefficients()
        return real_vandermonde(into * out, log_decay, min(taps, _taps_left(log_decay, taps)))

    def forward(
        self, x: Float[Tensor, "batch seq dim"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq dim"]:
        """mask: True for tokens, False for pads, which count as zero."""
        with torch.autocast(x.device.type, enabled=False):
            wide = x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0.0)
            wide = wide.to(torch.promote_types(x.dtype, _at_least_float32(self.delta)))
            if self._may_scan(wide):
                return self._scan(wide).to(x.dtype)
            y = self._convolve(wide.transpose(1, 2), self.kernel(x.shape[1]))
            return y.transpose(1, 2).to(x.dtype)

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Averages of 0. Raises: ValueError for a bidirectional or truncated one, which has no recurrence."""
        self._check_recurrent()
        device = self.delta.device if device is None else device
        dtype = _at_least_float32(self.delta) if dtype is None else torch.promote_types(dtype, torch.float32)
        return {"ema": torch.zeros(batch, self.d_model, self.n_states, device=device, dtype=dtype)}

    def prefill(
        self, x: Float[Tensor, "batch seq dim"], state: State
    ) -> tuple[Float[Tensor, "batch seq dim"], State]:
        """The convolution, plus what the averages so far give, sum_n gamma_n q_n^(t+1) h_n / sqrt(N)."""
        self._check_recurrent()
        with torch.autocast(x.device.type, enabled=False):
            _, log_decay, out = (part[0] for part in self.coefficients())
            old = state["ema"]
            echo = real_vandermonde(old * out * log_decay.exp(), log_decay, x.shape[1])
            y = self(x) + echo.transpose(1, 2).to(x.dtype)
            return y, {"ema": self._advance(self._channels_first(x), old)}

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """The recurrence."""
        self._check_recurrent()
        with torch.autocast(x.device.type, enabled=False):
            into, log_decay, out = (part[0] for part in self.coefficients())
            h = log_decay.exp() * state["ema"] + into * x.unsqueeze(-1)
            y = (out * h).sum(-1) + self.omega * x
            return y.to(x.dtype), {"ema": h}

    def extra_repr(self) -> str:
        direction = "bidirectional" if self.bidirectional else "causal"
        return f"{self.d_model}, n_states={self.n_states}, {direction}, truncation={self.truncation}"

    def _may_scan(self, x: Tensor) -> bool:
        """Whether the compiled recurrence can do it: a truncated kernel has none."""
        if self.truncation is not None or torch.compiler.is_compiling():
            return False
        reason = why_not(x, self.delta)
        if reason is not None and x.device.type == "cpu":
            notice_fallback("damped averages", reason)
        return reason is None

    def _scan(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        p = torch.sigmoid(self.delta)
        damping = p * torch.sigmoid(self.alpha)
        weight = p * self.beta * self.gamma * self.n_states**-0.5
        if not self.bidirectional:
            return damped_averages(x, damping.squeeze(0), weight.squeeze(0), self.omega)
        (past, ahead), (of_past, of_ahead) = damping, weight
        y = damped_averages(x, past, of_past, self.omega)
        return y + damped_averages(x, ahead, of_ahead, torch.zeros_like(self.omega), reverse=True)

    def _convolve(self, u: Tensor, kernel: Tensor) -> Tensor:
        skip = self.omega.to(u.dtype)
        if not self.bidirectional:
            return fft_convolve(u, kernel.squeeze(0), skip=skip)
        # What looks ahead starts one step ahead in `fft_convolve`: its lag 0 goes to the other kernel.
        ahead = kernel[1, :, 1:] if kernel.shape[-1] > 1 else None
        both = torch.cat([kernel[0, :, :1] + kernel[1, :, :1], kernel[0, :, 1:]], -1)
        return fft_convolve(u, both, skip=skip, backward_kernel=ahead)

    def _advance(self, u: Float[Tensor, "batch dim seq"], h: Tensor) -> Tensor:
        """h_L = q^L h + sum_l q^(L−1−l) p beta x_l, a piece at a time."""
        into, log_decay, _ = (part[0] for part in self.coefficients())
        for piece in u.split(_STATE_CHUNK, -1):
            length = piece.shape[-1]
            ages = torch.arange(length - 1, -1, -1, device=u.device)
            powers = torch.exp(log_decay.unsqueeze(-1) * ages)
            fresh = torch.einsum("dnl,bdl->bdn", powers, piece) * into
            h = torch.exp(log_decay * length) * h + fresh
        return h

    def _channels_first(self, x: Tensor) -> Tensor:
        return x.to(torch.promote_types(x.dtype, _at_least_float32(self.delta))).transpose(1, 2)

    def _check_recurrent(self) -> None:
        if self.bidirectional:
            raise ValueError("a bidirectional EMA has no state: later tokens change earlier outputs; "
                             "use bidirectional=False")  # fmt: skip
        if self.truncation is not None:
            raise ValueError(
                f"truncation={self.truncation} cuts the kernel, which a recurrence cannot do; "
                "use truncation=None"
            )


def naive_damped_ema(ema: DampedEMA, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
    """The equations, token by token; a second pass over the reversed sequence looks ahead."""
    y = ema.omega * x
    p, a = torch.sigmoid(ema.delta), torch.sigmoid(ema.alpha)
    for direction in range(len(ema.delta)):
        order = range(x.shape[1]) if direction == 0 else reversed(range(x.shape[1]))
        h = torch.zeros(len(x), ema.d_model, ema.n_states, dtype=x.dtype, device=x.device)
        outs = {}
        for t in order:
            p_d, a_d, beta, gamma = p[direction], a[direction], ema.beta[direction], ema.gamma[direction]
            h = (1 - p_d * a_d) * h + p_d * beta * x[:, t, :, None]
            outs[t] = (gamma * h).sum(-1) / math.sqrt(ema.n_states)
        y = y + torch.stack([outs[t] for t in range(x.shape[1])], 1)
    return y


def _taps_left(log_decay: Tensor, length: int) -> int:
    """Taps before the slowest average is down to e^-80; asked on the CPU alone, where the answer is there."""
    if log_decay.device.type != "cpu" or torch.compiler.is_compiling():
        return length
    slowest = log_decay.detach().amax().item()
    return min(length, int(_NOTHING / slowest) + 1) if slowest * length < _NOTHING else length


def _truncated_normal(parameter: Tensor, std: float) -> None:
    nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
