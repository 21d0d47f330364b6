"""SeqBoat on the bytes of a text: what each arm makes of it, and how much it attends."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.data.tokens import Bytes, TextBatches, every_window, split_ids, token_ids
from shoestring.layers.seqboat.seqboat import SeqBoat, activity_by_layer
from shoestring.models.seqboat import SeqBoatLM
from shoestring.systems.seqboat.recall import SEQBOAT, arms
from shoestring.training.plan import TrainingPlan
from shoestring.training.trainer import Trainer
from shoestring.yardstick.comparison import Row


@dataclass(frozen=True)
class TextSettings:
    """Windows of `length` bytes, and the size and training of the models. judged: batches that judge."""

    length: int = 1024
    window: int = 128
    d_model: int = 128
    layers: int = 4
    steps: int = 2000
    batch_size: int = 8
    judged: int = 12


def text_rows(text: str, settings: TextSettings, seed: int) -> list[Row]:
    """Loss in nats a byte of the last tenth of `text`, of SeqBoat against each arm, and its activity."""
    ids, held_out = split_ids(token_ids(text, Bytes()))
    losses, activity = {}, {}
    for name in arms(settings.window):
        model = _trained(ids, settings, name, seed)
        losses[name], activity[name] = _judged(
            model, islice(every_window(held_out, settings.length, settings.batch_size), settings.judged)
        )
    rows = [
        Row(metric=f"loss a byte, against {name}", kind="quality", unit="nats", better="lower",
            baseline=losses[name], method=losses[SEQBOAT], against=name)
        for name in losses if name != SEQBOAT
    ]  # fmt: skip
    return rows + [
        Row(metric=f"share of bytes that attend, layer {number}", kind="compute", unit="", better="lower",
            baseline=1.0, method=share)
        for number, share in enumerate(activity[SEQBOAT], 1)
    ]  # fmt: skip


def _trained(ids: Tensor, settings: TextSettings, name: str, seed: int) -> SeqBoatLM:
    reach, router = arms(settings.window)[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SeqBoatLM(
            partial(SeqBoat, reach=reach, router=router),
            vocab_size=256, d_model=settings.d_model, n_layers=settings.layers,
        )  # fmt: skip
    plan = TrainingPlan(
        steps=settings.steps, learning_rate=3e-3, betas=(0.9, 0.98), schedule="linear",
        warmup_steps=settings.steps // 10, optimizer="adam", seed=seed,
    )  # fmt: skip
    batches = TextBatches(ids, settings.length, settings.batch_size, seed)
    Trainer(model, lambda m, batch: _loss(m(batch[0]), batch[1]), plan).run(batches)
    return model


@torch.inference_mode()
def _judged(model: SeqBoatLM, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[float, list[float]]:
    losses, shares = [], []
    for inputs, targets in batches:
        losses.append(_loss(model(inputs), targets).item())
        shares.append(list(activity_by_layer(model).values()))
    return sum(losses) / len(losses), [sum(each) / len(each) for each in zip(*shares, strict=True)]


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.transpose(1, 2), targets)
