"""What routing heads are good for: recall over a distance and the loss on real text, at equal steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.data.recall import PairRecall
from shoestring.data.seeded import IGNORED
from shoestring.data.tokens import Bytes, TextBatches, every_window, split_ids, token_ids
from shoestring.layers.kmeans import KMeansOptions, update_after_step
from shoestring.layers.routing.routing_attention import HeadSplit
from shoestring.layers.routing.routing_options import RoutingOptions
from shoestring.models.routing_transformer import (
    RoutingStack,
    RoutingTransformer,
    RoutingTransformerConfig,
    language_loss,
)
from shoestring.systems.language_task import corpus_text
from shoestring.systems.routing_transformer.claims import RECALL, TEXT
from shoestring.training.plan import TrainingPlan
from shoestring.training.trainer import Trainer
from shoestring.yardstick.comparison import Row

ARMS = ("local", "strict", "top-w", "full")
N_HEADS = 4


@dataclass(frozen=True)
class QualitySettings:
    """How long each arm is trained, and on how much. Lengths are in tokens."""

    recall_steps: int = 300
    recall_length: int = 256
    recall_pairs: int = 32
    text_steps: int = 200
    text_length: int = 1024
    text_batch: int = 2
    text_windows: int = 24
    text_dim: int = 128


def arm_heads(
    arm: str, length: int, block: int, routing: RoutingOptions, positions: str = "rotary"
) -> HeadSplit:
    """Four heads: all local, half of them routing, or all over the whole length."""
    if arm in ("local", "full"):
        block = block if arm == "local" else length
        return HeadSplit(N_HEADS, N_HEADS, 0, block=block, positions=positions)
    half = N_HEADS // 2
    return HeadSplit(N_HEADS, half, half, block=block, routing=routing, positions=positions)


def train(model: nn.Module, loss: Callable[[Any, Any], Tensor], plan: TrainingPlan, batches: Any) -> None:
    """By the plan, with the centroids moved after each step."""
    trainer = Trainer(model, loss, plan)
    handle = update_after_step(trainer.optimizer, model)
    trainer.run(batches)
    handle.remove()


class RecallModel(nn.Module):
    """Key and value embeddings summed, a stack, and the value as one of so many classes."""

    def __init__(self, task: PairRecall, config: RoutingTransformerConfig) -> None:
        super().__init__()
        self.keys = nn.Embedding(task.keys + 1, config.dim, padding_idx=0)
        self.values = nn.Embedding(task.values + 1, config.dim, padding_idx=0)
        self.stack = RoutingStack(config)
        self.out = nn.Linear(config.dim, task.values)

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and the commitment loss."""
        x, commitment, _ = self.stack(self.keys(keys) + self.values(values))
        return self.out(x), commitment


def recall_rows(settings: QualitySettings, seed: int) -> list[Row]:
    """Accuracy of each causal arm on new sequences, and the share of the gap that routing closes."""
    accuracy = {arm: recall_accuracy(arm, settings, seed) for arm in ("local", "strict", "full")}
    gap = accuracy["full"] - accuracy["local"]
    # Where full attention learned nothing either, there is nothing to close and nothing is claimed.
    closed = (accuracy["strict"] - accuracy["local"]) / gap if gap > 0 else 0.0
    return [
        RECALL.row(baseline=None, method=closed),
        Row(
            metric="recall accuracy, local + strict routing",
            kind="quality",
            unit="",
            better="higher",
            baseline=accuracy["local"],
            method=accuracy["strict"],
            against="local",
        ),
        Row(
            metric="recall accuracy, full attention",
            kind="quality",
            unit="",
            better="higher",
            baseline=accuracy["local"],
            method=accuracy["full"],
            against="local",
        ),
    ]


def recall_accuracy(arm: str, settings: QualitySettings, seed: int) -> float:
    """Share of questions answered rightly after training; chance is one in as many as there are values."""
    task = PairRecall(length=settings.recall_length, pairs=settings.recall_pairs, seed=seed)
    routing = RoutingOptions(16, 16, kmeans=KMeansOptions(decay=0.99))
    # Which position a pair stands in says nothing about it.
    heads = arm_heads(arm, settings.recall_length, 32, routing, positions="none")
    config = RoutingTransformerConfig(vocab_size=task.values, dim=64, n_layers=2, heads=heads, hidden=128)
    torch.manual_seed(seed)
    model = RecallModel(task, config)

    def loss(model: RecallModel, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        keys, values, targets = batch
        logits, commitment = model(keys, values)
        answer = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        return answer + config.commitment * commitment

    plan = TrainingPlan(settings.recall_steps, 3e-3, warmup_steps=settings.recall_steps // 20, seed=seed)
    train(model, loss, plan, task)
    held_out = PairRecall(
        length=settings.recall_length, pairs=settings.recall_pairs, batch_size=64, seed=seed + 1
    )
    keys, values, targets = held_out(0)
    with torch.no_grad():
        right = model(keys, values)[0].argmax(-1) == targets
    return right[targets != IGNORED].float().mean().item()


def text_rows(settings: QualitySettings, seed: int) -> tuple[list[Row], str]:
    """Loss on held-out bytes of each arm, and which text it was. What top-w gains includes leakage."""
    text, name = corpus_text("shakespeare")
    train_ids, held_out = split_ids(token_ids(text, Bytes()))
    losses = {arm: text_loss(arm, settings, train_ids, held_out, seed) for arm in ARMS}

    def row(arm: str, metric: str) -> Row:
        return Row(
            metric=metric, kind="quality", unit="nat", better="lower", baseline=losses["local"],
            method=losses[arm], against="local",
        )  # fmt: skip

    rows = [
        TEXT.row(baseline=losses["local"], method=losses["strict"], against="local"),
        row("top-w", "text loss, local + top-w routing (includes leakage)"),
        row("full", "text loss, full attention"),
    ]
    return rows, f"{name}, bytes, the last tenth held out"


def text_loss(arm: str, settings: QualitySettings, train_ids: Tensor, held_out: Tensor, seed: int) -> float:
    """Nats per byte on windows of the held-out part after training."""
    n = settings.text_length
    mode = arm if arm in ("strict", "top-w") else "strict"
    routing = RoutingOptions(*RoutingOptions.sizes_for(n), mode=mode, kmeans=KMeansOptions(decay=0.99))
    heads = arm_heads(arm, n, min(64, n), routing)
    dim = settings.text_dim
    config = RoutingTransformerConfig(vocab_size=256, dim=dim, n_layers=3, heads=heads, hidden=2 * dim)
    torch.manual_seed(seed)
    model = RoutingTransformer(config)

    def loss(model: RoutingTransformer, batch: tuple[Tensor, Tensor]) -> Tensor:
        return language_loss(model, *batch)

    plan = TrainingPlan(settings.text_steps, 3e-3, warmup_steps=settings.text_steps // 10, seed=seed)
    train(model, loss, plan, TextBatches(train_ids, n, settings.text_batch, seed))
    total = count = 0.0
    with torch.no_grad():
        for number, (tokens, targets) in enumerate(every_window(held_out, n, settings.text_batch)):
            if number * settings.text_batch >= settings.text_windows:
                break
            logits = model(tokens).logits
            total += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
            count += targets.numel()
    return total / count
