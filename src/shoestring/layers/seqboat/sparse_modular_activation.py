"""Sparse modular activation: every token decides by itself whether a module runs on it.

A router gives each token two options, skip and run. Where run wins, the token joins a sequence without gaps,
the module sees only that, and its output, times the probability of the choice, goes back to its place.
That product is the only way of the gradient to the router: a token that skips teaches it nothing.

Source: Ren et al. 2023, "Sparse Modular Activation for Efficient Sequence Modeling", sections 3.1 and 3.2.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shoestring.layers.parameter_hint import ParameterHint
from shoestring.layers.seqboat.compression_index import CompressedPlaces

Module = Callable[[Tensor, CompressedPlaces], Tensor]
"""From a compressed sequence and what is known of its places to outputs of the same length."""


@dataclass(frozen=True)
class Decision:
    """Which tokens run, and the probability that their outputs are multiplied by (0 where they do not).

    presence: how much a token counts for the others that run, where that is not 1.
    """

    active: Bool[Tensor, "batch seq"]
    confidence: Float[Tensor, "batch seq 1"]
    presence: Float[Tensor, "batch seq 1"] | None = None


@dataclass(frozen=True, kw_only=True)
class RouterOptions:
    """How a router starts and learns. The defaults are the paper's.

    init_temperature_scale: the first temperature is this times √d_model; the paper's runs have .3 to 1.
    warmup: in so many training passes every token runs and counts by its probability of `run`, for its own
    output and, in attention, as a key for others: a smooth form of what follows. It keeps a layer from going
    silent before it has learnt anything, and it is all that tells a router who is needed as a key: later a
    token's gradient is that of its own output alone. centred, gradient_floor: see `RouterLogits`; the floor
    is in the loss's units a logit, .001 that of an attention worth about .01 nats. These three are ours.
    Raises: ValueError for a scale that is not above 0, or a warm-up or floor below 0.
    """

    init_temperature_scale: float = 1.0
    warmup: int = 0
    centred: bool = False
    gradient_floor: float = 0.0

    def __post_init__(self) -> None:
        if not (self.init_temperature_scale > 0 and math.isfinite(self.init_temperature_scale)):
            raise ValueError(
                f"init_temperature_scale={self.init_temperature_scale} must be above 0, e.g. 0.3 to 1"
            )
        if self.warmup < 0:
            raise ValueError(f"warmup={self.warmup} must not be below 0")
        if not self.gradient_floor >= 0:
            raise ValueError(f"gradient_floor={self.gradient_floor} must not be below 0")


class Router(nn.Module):
    """The choice between skip (0) and run (1) from two logits a token.

    probability = softmax(logits / τ), in float32 at least, τ = exp(temperature) trained; the larger wins, and
    skip wins a tie. `activity` and `recent_activity` say how many tokens ran; a warning is given once when
    under 1 % or over 99 % of them do over many training passes.
    """

    warmup_passes: Tensor

    def __init__(self, d_model: int, options: RouterOptions | None = None) -> None:
        super().__init__()
        options = options or RouterOptions()
        self.warmup = options.warmup
        start = math.log(options.init_temperature_scale * math.sqrt(d_model))
        self.temperature = nn.Parameter(torch.tensor(start))
        if options.gradient_floor:
            self.parameter_hints = {"temperature": ParameterHint(adam_eps=options.gradient_floor)}
        self.register_buffer("warmup_passes", torch.zeros((), dtype=torch.int64))
        self.activity = math.nan
        """Share of the tokens (pads apart) that ran in the last pass."""
        self.recent_activity = math.nan
        """The same as a moving average over about the last 50 training passes after the warm-up."""
        self._warned = False

    def forward(
        self, logits: Float[Tensor, "batch seq options"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> Decision:
        """mask: True for tokens, False for pads, which never run. Raises: ValueError unless options is 2."""
        if logits.shape[-1] != 2:
            raise ValueError(f"logits have {logits.shape[-1]} options; a router has 2, skip and run")
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self._is_warming_up():
            active = torch.ones_like(wide[..., 0], dtype=torch.bool) if mask is None else mask
            weight = _ProbabilityOfRunning.apply(wide, self.temperature, active).unsqueeze(-1)
            return Decision(active, weight, weight)
        active = wide[..., 1] > wide[..., 0]
        if mask is not None:
            active = active & mask
        self._note(active, mask)
        return Decision(active, _ProbabilityOfRunning.apply(wide, self.temperature, active).unsqueeze(-1))

    def _is_warming_up(self) -> bool:
        if not self.training or self.warmup == 0 or int(self.warmup_passes) >= self.warmup:
            return False
        self.warmup_passes += 1
        return True

    def _note(self, active: Tensor, mask: Tensor | None) -> None:
        running = int(active.sum())
        all_tokens = active.numel() if mask is None else int(mask.sum())
        self.activity = running / all_tokens if all_tokens else math.nan
        if not self.training or math.isnan(self.activity):
            return
        # A start in the middle: a layer that opens at 0 is given the time of the average to recover.
        before = 0.5 if math.isnan(self.recent_activity) else self.recent_activity
        self.recent_activity = before + (self.activity - before) / 50
        if not self._warned and not 0.01 <= self.recent_activity <= 0.99:
            self._warned = True
            hint = (
                "a silent router gets no gradient; try RouterOptions(warmup=...)"
                if self.recent_activity < 0.5
                else "nothing is saved"
            )
            warnings.warn(f"the router runs {self.recent_activity:.1%} of the tokens: {hint}", stacklevel=2)


class _ProbabilityOfRunning(torch.autograd.Function):
    """softmax(logits / τ)[…, 1] = sigmoid((logits[…, 1] − logits[…, 0]) / τ), and 0 where not active.

    By hand, since a dozen operations on two numbers a token cost more than a layer can save elsewhere.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: Tensor, active: Tensor) -> Tensor:
        tau = temperature.exp()
        ratio = (logits[..., 1] - logits[..., 0]) / tau
        probability = torch.sigmoid(ratio).mul_(active)
        ctx.save_for_backward(ratio, probability, tau)
        return probability

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        ratio, probability, tau = ctx.saved_tensors
        slope = grad * probability * (1 - probability)  # 0 where not active, as the probability is there
        run = slope / tau
        return torch.stack([-run, run], -1), -(slope * ratio).sum().to(tau.dtype), None


def run_where_active(
    module: Module,
    x: Float[Tensor, "batch seq dim"],
    decision: Decision,
    *,
    to: tuple[Tensor, Tensor] | None = None,
) -> Float[Tensor, "batch seq dim_out"]:
    """confidence · extract(module(compress(x))): 0 for tokens that are not active.

    `module` must work on each token, or stand a sequence from which tokens are missing. With `to`, two
    tensors (batch, seq, dim_out), what a layer makes of it in the same pass: silu(to[0] + to[1] + that).
    """
    places = CompressedPlaces(decision.active)
    return places.extract(module(places.compress(x), places), decision.confidence, to=to)


class SparseModularActivation(nn.Module):
    """The sum of several modules, each run only on the tokens that its router picks.

    Each module maps (batch, seq, dim) to (batch, seq, dim_out) and is given the compressed sequence alone.
    Shapes: x (batch, seq, dim), logits (batch, seq, 2 · modules), module m having the options 2m (skip) and
    2m + 1 (run) -> (batch, seq, dim_out).
    """

    def __init__(
        self, modules: Sequence[nn.Module], d_model: int, options: RouterOptions | None = None
    ) -> None:
        super().__init__()
        if not modules:
            raise ValueError("modules is empty; give at least one")
        self.choices = nn.ModuleList(modules)
        self.routers = nn.ModuleList(Router(d_model, options) for _ in modules)

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        logits: Float[Tensor, "batch seq options"],
        mask: Bool[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq dim_out"]:
        """Raises: ValueError where `logits` are not two for each module."""
        if logits.shape[-1] != 2 * len(self.choices):
            raise ValueError(
                f"logits have {logits.shape[-1]} options; {len(self.choices)} modules need "
                f"{2 * len(self.choices)}, skip and run for each"
            )
        parts = [
            run_where_active(lambda h, _, module=module: module(h), x, router(pair, mask))  # type: ignore[misc]
            for module, router, pair in zip(self.choices, self.routers, logits.split(2, -1), strict=True)
        ]
        return torch.stack(parts).sum(0)


def naive_run_where_active(
    module: Callable[[Tensor], Tensor], x: Float[Tensor, "batch seq dim"], decision: Decision
) -> Float[Tensor, "batch seq dim_out"]:
    """Every sequence by itself: its active tokens out, through the module, back."""
    rows = []
    for row, active, confidence in zip(x, decision.active, decision.confidence, strict=True):
        picked = active.nonzero().squeeze(1)
        inner = row[picked] if len(picked) else torch.zeros_like(row[:1])
        out = module(inner[None])[0]
        whole = out.new_zeros(len(row), out.shape[1])
        rows.append(whole.index_copy(0, picked, out[: len(picked)]) * confidence)
    return torch.stack(rows)
