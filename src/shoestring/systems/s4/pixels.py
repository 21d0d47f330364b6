"""Pictures read pixel by pixel for the same time: S4, a gated recurrent network, and a Transformer."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.data.pixel_sequences import PixelTask
from shoestring.data.shuffled import ShuffledBatches
from shoestring.layers.self_attention import SelfAttention
from shoestring.layers.state_space import S4
from shoestring.models.sequence_classifier import SequenceClassifier
from shoestring.systems.card import Claim
from shoestring.systems.s4.claims import AS_GRU, AS_TRANSFORMER
from shoestring.training import Trainer, TrainingPlan
from shoestring.training.classifier import hits
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.paired_difference import paired_difference

OURS, GRU_NAME, TRANSFORMER = "S4", "GRU", "Transformer"
RATES = {OURS: 1e-2, GRU_NAME: 1e-2, TRANSFORMER: 1e-2}
"""Learning rates: the best of 1e-3, 3e-3 and 1e-2 for each after 200 steps of `quick`."""
WEIGHT_DECAY, BATCH = 0.05, 50
HEADS = 4


@dataclass(frozen=True)
class PixelSettings:
    """seconds: how long each arm trains; steps: how many it trains instead, where `seconds` is None."""

    d_model: int
    n_layers: int
    seconds: float | None
    steps: int = 0


@dataclass(frozen=True)
class _Outcome:
    right: Bool[Tensor, " pictures"]
    parameters: int
    steps: int
    seconds: float


class GRULayer(nn.Module):
    """torch's gated recurrent unit as a layer. Shapes: (batch, seq, d_model) -> the same."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.gru = nn.GRU(d_model, d_model, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)[0]


class AttentionLayer(nn.Module):
    """Self-attention over all pixels, which knows positions by waves, and a feed-forward network.

    Shapes: (batch, seq, d_model) -> the same. Source: Vaswani et al. 2017, "Attention Is All You Need".
    """

    positions: Tensor

    def __init__(self, d_model: int, seq: int) -> None:
        super().__init__()
        frequencies = 10_000.0 ** (-torch.arange(0, d_model, 2) / d_model)
        angles = torch.arange(seq).unsqueeze(1) * frequencies
        self.register_buffer("positions", torch.cat([angles.sin(), angles.cos()], dim=1), persistent=False)
        self.attention = SelfAttention(d_model, HEADS)
        self.norm = nn.LayerNorm(d_model)
        self.feed_forward = nn.Sequential(
            nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model)
        )

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.attention(x + self.positions)
        return mixed + self.feed_forward(self.norm(x + mixed))


def pixel_rows(task: PixelTask, settings: PixelSettings, seed: int) -> list[Row]:
    """Accuracy on test pictures of the three, as large and trained as long as each other."""
    models = {name: make() for name, make in _arms(task, settings, seed).items()}
    found = {name: _trained(name, model, task, settings, seed) for name, model in models.items()}
    rows = [_beside(AS_TRANSFORMER, found, TRANSFORMER), _beside(AS_GRU, found, GRU_NAME)]
    ours = found[OURS]
    for name in (GRU_NAME, TRANSFORMER):
        other = found[name]
        rows += [
            Row(metric=f"parameters, beside a {name}", kind="storage", unit="", better="lower",
                baseline=other.parameters, method=ours.parameters),
            Row(metric=f"steps in the same time, beside a {name}", kind="other", unit="", better="higher",
                baseline=other.steps, method=ours.steps),
            Row(metric=f"seconds of training, beside a {name}", kind="time", unit="s", better="lower",
                baseline=other.seconds, method=ours.seconds),
        ]  # fmt: skip
    return rows


def _arms(task: PixelTask, settings: PixelSettings, seed: int) -> dict[str, Callable[[], nn.Module]]:
    """The three models; rivals have the width at which they are as large as ours."""
    seq = task.train.x.shape[1]

    def classifier(layer: Callable[[int], nn.Module], d_model: int) -> nn.Module:
        torch.manual_seed(seed)
        return SequenceClassifier(layer, d_input=1, d_model=d_model, n_layers=settings.n_layers, n_classes=10)

    def like_ours(layer: Callable[[int], nn.Module]) -> Callable[[], nn.Module]:
        target = _size(classifier(S4, settings.d_model))
        widths = range(HEADS, 2 * settings.d_model + 1, HEADS)
        with torch.device("meta"):  # they are counted, not made
            width = min(widths, key=lambda d: abs(_size(classifier(layer, d)) - target))
        return lambda: classifier(layer, width)

    return {
        OURS: lambda: classifier(S4, settings.d_model),
        GRU_NAME: like_ours(GRULayer),
        TRANSFORMER: like_ours(lambda d: AttentionLayer(d, seq)),
    }


def _trained(name: str, model: nn.Module, task: PixelTask, settings: PixelSettings, seed: int) -> _Outcome:
    batches = ShuffledBatches(task.train.x, task.train.labels, batch_size=BATCH, seed=seed)
    steps = settings.steps
    if settings.seconds is not None:
        steps = max(1, int(settings.seconds / _step_seconds(model, batches, seed)))
    plan = TrainingPlan(steps, RATES[name], weight_decay=WEIGHT_DECAY, warmup_steps=steps // 10, seed=seed)
    record = Trainer(model, _loss, plan).run(batches)
    return _Outcome(
        hits(model.eval(), task.test.x, task.test.labels, batch_size=250), _size(model), steps, record.seconds
    )


def _step_seconds(model: nn.Module, batches: ShuffledBatches, seed: int) -> float:
    """The median of some steps of a copy, after the first, which sets things up."""
    spare, seconds = copy.deepcopy(model), []
    for _ in range(2):
        start = time.perf_counter()
        Trainer(spare, _loss, TrainingPlan(5, 1e-4, seed=seed)).run(batches)
        seconds.append((time.perf_counter() - start) / 5)
    return seconds[-1]


def _loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _beside(claim: Claim, found: dict[str, _Outcome], name: str) -> Row:
    """Accuracies in percent, with the 95 % interval of their paired difference over the test pictures."""
    return claim.row(**paired_difference(found[OURS].right, found[name].right, scale=100), against=name)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
