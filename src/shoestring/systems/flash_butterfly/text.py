"""A Transformer over characters whose MLPs give way to learned butterflies, beside a narrower MLP."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.data.tokens import Characters, TextBatches, every_window, split_ids, token_ids
from shoestring.layers.long_convolution.long_convolution import FeatureLongConv
from shoestring.models.transformer import TransformerLM, TransformerOptions
from shoestring.systems.flash_butterfly.claims import LOSS, WEIGHTS
from shoestring.training import Trainer, TrainingPlan
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.paired_difference import paired_difference

LEARNING_RATE, WEIGHT_DECAY = 3e-3, 0.05
HEADS = 4


@dataclass(frozen=True)
class TextExperiment:
    """How large: the Transformer, how long it is trained, and windows of the held-out text that judge."""

    d_model: int
    n_layers: int
    context: int
    batch: int
    steps: int
    windows: int


def text_rows(text: str, size: TextExperiment, seed: int) -> list[Row]:
    """Weights and validation loss of the Transformer with MLPs, with butterflies, and with narrow MLPs."""
    characters = Characters.of(text)
    train, held_out = split_ids(token_ids(text, characters))
    models = _models(len(characters), size, seed)
    losses = {}
    for name, model in models.items():
        _train(model, TextBatches(train, size.context, size.batch, seed), size, seed)
        losses[name] = _window_losses(model.eval(), held_out, size)
    weights = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    return [
        WEIGHTS.row(baseline=weights["MLP"], method=weights["butterfly"], against="MLP of 4 times the width"),
        _loss_row(LOSS.row, losses["MLP"], losses["butterfly"], "MLP of 4 times the width"),
        _loss_row(
            partial(
                Row, metric="validation loss, beside an MLP of equal weights", kind="quality", unit="nats",
                better="lower", bar_on="difference",
            ),
            losses["narrow MLP"],
            losses["butterfly"],
            f"narrow MLP, {weights['narrow MLP']:,} weights",
        ),
    ]  # fmt: skip


def _models(vocabulary: int, size: TextExperiment, seed: int) -> Mapping[str, nn.Module]:
    def build(**feed_forward: Any) -> nn.Module:
        torch.manual_seed(seed)
        options = TransformerOptions(
            d_model=size.d_model, n_heads=HEADS, n_layers=size.n_layers, norm_first=True, **feed_forward
        )
        return TransformerLM(vocabulary, size.context, options, tied=True)

    return {
        "MLP": build(),
        "butterfly": build(feed_forward=FeatureLongConv),
        "narrow MLP": build(d_ff=equal_hidden(size.d_model)),
    }


def equal_hidden(d_model: int) -> int:
    """The width of an MLP with about as many weights as a `FeatureLongConv`."""
    weights = sum(p.numel() for p in FeatureLongConv(d_model).parameters())
    return round((weights - d_model) / (2 * d_model + 1))


def _train(model: nn.Module, batches: TextBatches, size: TextExperiment, seed: int) -> None:
    def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(net(batch[0]).flatten(0, 1), batch[1].flatten())

    plan = TrainingPlan(
        size.steps, LEARNING_RATE, weight_decay=WEIGHT_DECAY, warmup_steps=size.steps // 10, seed=seed
    )
    Trainer(model, loss, plan).run(batches)


@torch.no_grad()
def _window_losses(model: nn.Module, ids: Tensor, size: TextExperiment) -> Float[Tensor, " windows"]:
    """The mean loss of each of the first windows of a text."""
    losses = []
    for x, y in every_window(ids[: size.windows * size.context + 1], size.context, size.batch):
        losses.append(F.cross_entropy(model(x).mT, y, reduction="none").mean(1))
    return torch.cat(losses).double()


def _loss_row(make: Callable[..., Row], baseline: Tensor, method: Tensor, against: str) -> Row:
    """Two losses on the same windows; the spread is that of the paired difference."""
    return make(**paired_difference(method, baseline), against=against)
