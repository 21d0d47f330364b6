"""What Vision Mamba learns beside a transformer of as many parameters, and beside itself reading one way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.data.pixel_sequences import PixelSequences, PixelTask
from shoestring.data.shuffled import ShuffledBatches
from shoestring.models.vision_mamba import VisionMamba
from shoestring.models.vision_mamba_config import Direction, VisionMambaConfig
from shoestring.models.vision_transformer import VisionTransformer, VisionTransformerConfig
from shoestring.systems.card import Claim
from shoestring.systems.vision_mamba.claims import ACCURACY, BOTH_WAYS
from shoestring.training.classifier import hits
from shoestring.training.plan import TrainingPlan
from shoestring.training.trainer import Trainer
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.paired_difference import paired_difference

NAMES = ("vim", "vim forward", "transformer")
RATES = (1e-3, 3e-3, 1e-2)
"""Learning rates that every network may choose from."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Networks on pictures of `side` pixels in patches of `patch_size`, and how long they learn.

    trial_steps: with each of RATES, before the best on `held_out` training pictures is taken for the whole.
    """

    patch_size: int = 4
    dim: int = 64
    depth: int = 4
    steps: int = 240
    trial_steps: int = 40
    batch_size: int = 64
    held_out: int = 1000
    rates: tuple[float, ...] = RATES


def learning_rows(task: PixelTask, lesson: Lesson, seed: int) -> tuple[list[Row], list[str]]:
    """Accuracies on the test pictures, and notes."""
    train, trial = split(task.train, lesson.held_out)
    builders = networks(lesson, task.train.height)
    found: dict[str, Bool[Tensor, " n"]] = {}
    notes = []
    for name in NAMES:
        rate = choose_rate(builders[name], train, trial, lesson, seed)
        model = learn(
            builders[name], (task.train.images, task.train.labels), rate, lesson.steps, lesson, seed
        )
        found[name] = hits(model, task.test.images, task.test.labels)
        notes.append(
            f"{name}: {sum(p.numel() for p in model.parameters())} parameters, learning rate {rate:g}"
        )
    return [
        _row(ACCURACY, found["vim"], found["transformer"], "transformer of as many parameters"),
        _row(BOTH_WAYS, found["vim"], found["vim forward"], "forward only"),
    ], notes


def networks(lesson: Lesson, side: int) -> Mapping[str, Callable[[], nn.Module]]:
    """Builders by name. The transformer's hidden layers are as wide as makes the parameters equal."""
    shape: dict[str, Any] = {
        "image_size": (side, side), "channels": 1, "patch_size": lesson.patch_size, "dim": lesson.dim,
        "depth": lesson.depth, "n_classes": 10,
    }  # fmt: skip
    both = VisionMambaConfig(**shape, stride=lesson.patch_size)
    forward = VisionMambaConfig(**shape, stride=lesson.patch_size, direction=Direction.FORWARD)
    return {
        "vim": lambda: VisionMamba(both),
        "vim forward": lambda: VisionMamba(forward),
        "transformer": lambda: VisionTransformer(equal_transformer(both)),
    }


def equal_transformer(mamba: VisionMambaConfig) -> VisionTransformerConfig:
    """A transformer of the same width and depth, its hidden layers as wide as makes the parameters equal."""

    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    def sized(hidden: int) -> VisionTransformerConfig:
        return VisionTransformerConfig(
            image_size=mamba.image_size, channels=mamba.channels, patch_size=mamba.patch_size, dim=mamba.dim,
            depth=mamba.depth, heads=max(1, mamba.dim // 16), mlp_ratio=hidden / mamba.dim,
            n_classes=mamba.n_classes,
        )  # fmt: skip

    with torch.device("meta"):
        wanted, least = count(VisionMamba(mamba)), count(VisionTransformer(sized(1)))
        each = count(VisionTransformer(sized(2))) - least
    return sized(max(1, 1 + round((wanted - least) / each)))


def split(train: PixelSequences, held_out: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(pictures, labels) to learn from, and the last `held_out` to choose a learning rate by."""
    images, labels = train.images, train.labels
    return (images[:-held_out], labels[:-held_out]), (images[-held_out:], labels[-held_out:])


def choose_rate(
    build: Callable[[], nn.Module],
    train: tuple[Tensor, Tensor],
    trial: tuple[Tensor, Tensor],
    lesson: Lesson,
    seed: int,
) -> float:
    """The rate of `lesson.rates` with the lowest loss on pictures held out, after a short training."""
    if len(lesson.rates) == 1:
        return lesson.rates[0]

    def loss_at(rate: float) -> float:
        model = learn(build, train, rate, lesson.trial_steps, lesson, seed)
        with torch.inference_mode():
            return float(F.cross_entropy(model(trial[0]), trial[1]))

    return min(lesson.rates, key=loss_at)


def learn(
    build: Callable[[], nn.Module],
    data: tuple[Tensor, Tensor],
    rate: float,
    steps: int,
    lesson: Lesson,
    seed: int,
) -> nn.Module:
    """A network trained from `seed`, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    plan = TrainingPlan(steps, rate, weight_decay=0.05, warmup_steps=steps // 10, seed=seed)
    batches = ShuffledBatches(*data, batch_size=lesson.batch_size, seed=seed)
    Trainer(model, _loss, plan).run(batches)
    return model


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def _row(claim: Claim, method: Bool[Tensor, " n"], baseline: Bool[Tensor, " n"], against: str) -> Row:
    """Two accuracies on the same pictures; the spread is that of the paired difference."""
    return claim.row(**paired_difference(method, baseline, scale=100), against=against)
