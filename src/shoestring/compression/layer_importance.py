"""Which layers' attention a model can do without: leaving one out, and replacing one for a short while.

LOO: I_l = P(full) − P(without l), static, misleading once about half of the layers are gone, because layers
that do not matter alone matter together. MMR: replace only layer l in the present student, distil a little;
a low loss says that it is easy to replace now. Both rank; a ranking must beat chance and its own inverse.

Source: Apriel-H1 (ServiceNow, 2025), stages 1 and 2.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from shoestring.errors import TrainingDiverged
from shoestring.models.decoder import Decoder
from shoestring.yardstick.language_quality import perplexity

Score = Callable[[nn.Module], float]
"""How good a model is; higher is better."""
Removal = Callable[[nn.Module, int], AbstractContextManager[None]]


@dataclass(frozen=True)
class LayerImportance:
    """full: the score of the whole model; without: its score with one layer left out, by layer."""

    full: float
    without: dict[int, float]

    @property
    def drops(self) -> dict[int, float]:
        """How much each layer is worth alone."""
        return {layer: self.full - score for layer, score in self.without.items()}

    @property
    def order(self) -> tuple[int, ...]:
        """The layers, the least important first; the earlier of equals first."""
        return tuple(sorted(self.drops, key=lambda layer: (self.drops[layer], layer)))


@dataclass(frozen=True)
class RemovalControls:
    """Scores with equally many layers removed at once: the least important, any, and the most important."""

    by_importance: float
    at_random: float
    inverted: float

    @property
    def holds(self) -> bool:
        """Whether the order beats both controls."""
        return self.by_importance > max(self.at_random, self.inverted)


def negative_loss(windows: Int[Tensor, "windows tokens"], batch_size: int = 8) -> Score:
    """Minus the loss, nats a token, on these windows. Raises: ValueError where there are none."""
    if len(windows) == 0:
        raise ValueError("the evaluation set is empty; give at least one window of token ids")
    return lambda model: -math.log(perplexity(model, windows, batch_size=batch_size).ppl)


def leave_one_out(
    model: nn.Module,
    score: Score,
    *,
    layers: Iterable[int] | None = None,
    removal: "Removal | None" = None,
    progress: Callable[[int, int], None] | None = None,
) -> LayerImportance:
    """The score of a model, and that without the attention of each layer, by default of all that have one.

    model: a `Decoder`, or one of transformers whose blocks are `model.layers`; unchanged afterwards. removal:
    `attention_removed` (the default) or `layer_removed`. progress: called with layers done and all of them.
    Raises: TypeError for a model of another build; ValueError for no layer, or a score that is no number.
    """
    removal = attention_removed if removal is None else removal
    chosen = list(attention_layers(model) if layers is None else layers)
    if not chosen:
        raise ValueError("layers is empty; there is no attention to leave out")
    full, without = _number(score(model), "the whole model"), {}
    for done, layer in enumerate(chosen):
        with removal(model, layer):
            without[layer] = _number(score(model), f"the model without layer {layer}")
        if progress is not None:
            progress(done + 1, len(chosen))
    return LayerImportance(full, without)


def removal_controls(
    model: nn.Module, importance: LayerImportance, score: Score, count: int, *, seed: int = 0
) -> RemovalControls:
    """Whether the ranking tells anything: `count` layers' attention removed at once by three orders.

    Raises: ValueError for a count that is not below the number of layers.
    """
    order = importance.order
    if not 0 < count < len(order):
        raise ValueError(
            f"count={count} must be 1 to {len(order) - 1}, fewer than the layers that are ranked"
        )
    scores = []
    for ranked in (order, random_order(order, seed), order[::-1]):
        with ExitStack() as stack:
            for layer in ranked[:count]:
                stack.enter_context(attention_removed(model, layer))
            scores.append(score(model))
    return RemovalControls(*scores)


def probe_replacements(
    student: Decoder,
    layers: Iterable[int],
    *,
    replace: Callable[[Decoder, int], Decoder],
    distil: Callable[[Decoder], float],
) -> dict[int, float]:
    """MMR: the loss after a short distillation with only this layer replaced, by layer; low is easy.

    replace: gives a copy with that layer replaced. distil: trains the copy a little and gives its loss.
    Raises: TrainingDiverged, naming the layer, for a loss that is no number.
    """
    losses = {}
    for layer in layers:
        losses[layer] = distil(replace(student, layer))
        if not math.isfinite(losses[layer]):
            raise TrainingDiverged(
                f"the probe of layer {layer} ended with a loss of {losses[layer]}; lower its learning rate"
            )
    return losses


def random_order(layers: Sequence[int], seed: int) -> tuple[int, ...]:
    """The layers in an order that the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(layers[i] for i in torch.randperm(len(layers), generator=generator).tolist())


def attention_layers(model: nn.Module) -> tuple[int, ...]:
    """The layers that have attention. Raises: as `leave_one_out`."""
    return tuple(i for i, block in enumerate(_blocks(model)) if "self_attn" in dict(block.named_children()))


@contextmanager
def attention_removed(model: nn.Module, layer: int) -> Iterator[None]:
    """Inside, the attention of a layer adds nothing; its feed-forward network stays."""
    block: Any = _blocks(model)[layer]
    kept = block.self_attn
    block.self_attn = _NoAttention() if isinstance(model, Decoder) else _NoAttentionOfTransformers()
    try:
        yield
    finally:
        block.self_attn = kept


@contextmanager
def layer_removed(model: nn.Module, layer: int) -> Iterator[None]:
    """Inside, a layer gives back what it gets (the identity block of the authors' code)."""
    blocks = _blocks(model)
    kept = blocks[layer]
    blocks[layer] = _NoLayer()
    try:
        yield
    finally:
        blocks[layer] = kept


class _NoAttention(nn.Module):
    def forward(self, x: Tensor, step: Any) -> Tensor:
        return torch.zeros_like(x)


class _NoAttentionOfTransformers(nn.Module):
    def forward(self, hidden_states: Tensor, **others: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class _NoLayer(nn.Module):
    def forward(self, x: Tensor, *others: Any, **more: Any) -> Tensor:
        return x


def _blocks(model: nn.Module) -> nn.ModuleList:
    for path in ("model.layers", "model.language_model.layers"):
        try:
            found = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList):
            return found
    raise TypeError(f"{type(model).__name__} has no list of blocks 'model.layers' to leave one out of")


def _number(score: float, of: str) -> float:
    if math.isnan(score):
        raise ValueError(f"the score of {of} is not a number; look at the evaluation set and the weights")
    return score
