"""Tune the scales of a packed model so that its predictions return towards the original's.

Codes stay as they are; each group's scale (and offset) is multiplied by a trained factor, and the gains of
the normalisations move with them. The loss is the Kullback-Leibler divergence to the original model on
calibration text. Afterwards the scales are rounded to what the format stores: not a byte is added.

Source: Chen et al. 2025, "EfficientQAT", section 3.3 (training the step sizes end to end); Hinton et al.
2015, "Distilling the Knowledge in a Neural Network" (the loss).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.compression.sensitivity import logits_of
from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear, PackedWeight
from shoestring.numbers.grouped_affine import ZeroPoint
from shoestring.numbers.packing import unpack_bits
from shoestring.yardstick.language_quality import without_cache

TOKENS_AT_ONCE = 512
"""Positions whose distributions over the vocabulary are compared at a time."""


@dataclass(frozen=True)
class ScaleTuning:
    """How long and how fast: Adam with a linear warm-up over a tenth of the steps and a cosine to zero.

    steps: updates, one window each. learning_rate: of the factors, which begin at 1, and of the gains.
    """

    steps: int = 48
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        if self.steps < 0 or self.learning_rate <= 0:
            raise ValueError(f"{self} cannot be: steps must be 0 or more, learning_rate above 0.")

    def rate_at(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0."""
        warmup = min(1.0, (step + 1) / max(1, self.steps // 10))
        return self.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def tune_scales(
    model: nn.Module,
    original: nn.Module,
    windows: Int[Tensor, "windows tokens"],
    tuning: ScaleTuning,
    *,
    generator: torch.Generator,
    autocast: torch.dtype | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> nn.Module:
    """Tune all packed weights of `model` in place, and return it; `original` is left unchanged.

    windows: token ids to tune on, drawn without replacement, over again when used up. progress: called with
    the steps done, all steps, and the divergence of the last (nats a token).

    Raises: ValueError if the model holds no packed weight, or there is no window.
    """
    packed = packed_weights(model)
    if not packed:
        raise ValueError("the model holds no packed weight to tune; apply a packing recipe first.")
    if len(windows) == 0:
        raise ValueError("there is no window to tune on; give more text.")
    if tuning.steps == 0:
        return model
    with _tuned(model, packed, autocast) as factors:
        gains = [p for m in model.modules() if _is_gain(m) for p in m.parameters()]
        for gain in gains:
            gain.requires_grad_(True)
        optimizer = torch.optim.Adam([*factors, *gains], lr=tuning.learning_rate, betas=(0.9, 0.95))
        for step, window in enumerate(_draw(windows, tuning.steps, generator)):
            for group in optimizer.param_groups:
                group["lr"] = tuning.rate_at(step)
            loss = _divergence_step(model, original, window[None], autocast)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if progress is not None:
                progress(step + 1, tuning.steps, loss)
        for gain in gains:
            gain.requires_grad_(False)
    return model


def packed_weights(model: nn.Module) -> list[PackedWeight]:
    """The packed weights of a model, tied ones once."""
    return list(dict.fromkeys(m for m in model.modules() if isinstance(m, PackedWeight)))


class TunedWeight(nn.Module):
    """A packed weight while it is tuned: Ŵ = factor · (its stored value), one factor for each row and group.

    The stored values are held once in `dtype`, so that a step does not unpack them again.
    """

    def __init__(self, packed: PackedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        groups = packed.form.groups(packed.cols)
        self.packed, self.rows, self.cols = packed, packed.rows, packed.cols
        self.register_buffer("stored_value", packed.dequantise(dtype=dtype), persistent=False)
        self.factor = nn.Parameter(torch.ones(packed.rows, groups, device=packed.device))

    def weight(self, rows: Tensor | slice = slice(None)) -> Float[Tensor, "chosen cols"]:
        """Some rows of Ŵ, differentiable in the factors."""
        assert isinstance(self.stored_value, Tensor)
        value, factor = self.stored_value[rows], self.factor[rows]
        grouped = value.view(*value.shape[:-1], factor.shape[-1], -1)
        return (grouped * factor.to(value.dtype)[..., None]).flatten(-2)

    def forward(self, x: Float[Tensor, "*batch cols"]) -> Float[Tensor, "*batch rows"]:
        weight = self.weight()
        return F.linear(x.to(weight.dtype), weight)

    def dequantise(
        self, rows: Tensor | slice = slice(None), dtype: torch.dtype | None = None
    ) -> Float[Tensor, "chosen cols"]:
        """As `PackedWeight.dequantise`, for embeddings."""
        return self.weight(rows).to(self.packed.dtype if dtype is None else dtype)

    def repack(self) -> PackedWeight:
        """The packed weight with the tuned scales, rounded to what its format stores."""
        packed, form = self.packed, self.packed.form
        with torch.no_grad():
            grid = form.grid(packed.stored(), packed.cols)
            # A scale cannot change its sign; that a factor would is a sign of too large a learning rate.
            factor = self.factor.clamp(min=1e-3)
            shift = grid.offset * factor if form.zero_point is ZeroPoint.REAL else grid.zero
            tuned = form.represent(grid.scale * factor, shift)
            for name, tensor in form.store(unpack_bits(packed.codes, form.bits, packed.cols), tuned).items():
                setattr(packed, name, tensor)
        return packed


@contextmanager
def _tuned(
    model: nn.Module, packed: list[PackedWeight], autocast: torch.dtype | None
) -> Iterator[list[nn.Parameter]]:
    """Put `TunedWeight`s in the place of packed weights; at the end pack what they learned."""
    training, frozen = model.training, [p for p in model.parameters() if p.requires_grad]
    model.eval().requires_grad_(False)
    tuned = {weight: TunedWeight(weight, autocast or weight.dtype) for weight in packed}
    holders = [m for m in model.modules() if isinstance(m, PackedLinear | PackedEmbedding)]
    for holder in holders:
        _hold(holder, tuned[holder.packed])
    try:
        yield [weight.factor for weight in tuned.values()]
    finally:
        for holder in holders:
            held = holder.packed
            assert isinstance(held, TunedWeight)
            _hold(holder, held.packed)
        for weight in tuned.values():
            weight.repack()
        model.train(training)
        for parameter in frozen:
            parameter.requires_grad_(True)


def _hold(holder: PackedLinear | PackedEmbedding, weight: nn.Module) -> None:
    """Give a layer another weight, in the way it held the former: as its own, or borrowed."""
    if holder.borrows:
        holder.__dict__["packed"] = weight
    else:
        holder.packed = weight  # type: ignore[assignment]


def _divergence_step(
    model: nn.Module, original: nn.Module, ids: Int[Tensor, "1 tokens"], autocast: torch.dtype | None
) -> float:
    """Add the gradients of the mean divergence over a window; the window's divergence in nats a token.

    The distributions over the vocabulary are compared piece by piece, each piece's gradient passed to the
    logits at once: they are the largest tensors of the step.
    """
    with torch.autocast(ids.device.type, autocast, enabled=autocast is not None):
        with torch.no_grad():
            target = logits_of(original(ids, **without_cache(original)))[0]
        logits = logits_of(model(ids, **without_cache(model)))
    flat = logits[0]
    gradient, total = torch.empty_like(flat), 0.0
    for start in range(0, len(flat), TOKENS_AT_ONCE):
        piece = slice(start, start + TOKENS_AT_ONCE)
        log_p = target[piece].float().log_softmax(-1)
        log_q = flat.detach()[piece].float().log_softmax(-1)
        p = log_p.exp()
        total += (p * (log_p - log_q)).sum().item()
        # d KL(p‖q) / d logits of q = q − p
        gradient[piece] = (log_q.exp_().sub_(p) / len(flat)).to(gradient.dtype)
    flat.backward(gradient)
    return total / len(flat)


def _is_gain(module: nn.Module) -> bool:
    """Whether the module is a normalisation, whose gains cost no byte more when they move."""
    return "norm" in type(module).__name__.lower() and all(p.dim() == 1 for p in module.parameters())


def _draw(
    windows: Int[Tensor, "windows tokens"], count: int, generator: torch.Generator
) -> Iterator[Int[Tensor, " tokens"]]:
    drawn = 0
    while True:
        for index in torch.randperm(len(windows), generator=generator):
            if drawn == count:
                return
            yield windows[index]
            drawn += 1
