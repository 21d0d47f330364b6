"""Pictures read pixel by pixel: long convolutions with and without a squash, beside a state space."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.data.pixel_sequences import PixelTask
from shoestring.data.shuffled import ShuffledBatches
from shoestring.layers.long_convolution.long_convolution import LongConv, LongFilter
from shoestring.layers.long_convolution.squash import (
    KernelRegulariser,
    geometric_kernel,
    random_kernel,
    spectral_roughness,
)
from shoestring.layers.state_space import S4D, StateSpace
from shoestring.models.sequence_classifier import SequenceClassifier
from shoestring.systems.flash_butterfly.claims import AS_S4D, AS_UNSQUASHED
from shoestring.training import Trainer, TrainingPlan
from shoestring.training.classifier import hits
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.paired_difference import paired_difference

THRESHOLD, KERNEL_DROPOUT = 0.001, 0.2
"""Those of the paper for sequential CIFAR."""
NONE, SQUASH, GEOMETRIC, STATE_SPACE = "no squash", "squash", "geometric start and squash", "S4D"
BATCH, LEARNING_RATE, WEIGHT_DECAY = 50, 1e-2, 0.05


@dataclass(frozen=True)
class PixelExperiment:
    """How large: the network and how often it sees the pictures. chosen_on: test pictures that choose."""

    d_model: int
    n_layers: int
    epochs: int
    chosen_on: int


@dataclass(frozen=True)
class _Outcome:
    right: Bool[Tensor, " pictures"]
    chosen_by: float
    roughness: float


def pixel_rows(task: PixelTask, size: PixelExperiment, seed: int) -> list[Row]:
    """Accuracy and roughness of every arm. The best squash is chosen on pictures that do not judge."""
    found = {name: _train(layer, task, size, seed) for name, layer in _arms(len(task.train.x[0])).items()}
    best = max((SQUASH, GEOMETRIC), key=lambda name: found[name].chosen_by)
    rows = [
        claim.row(
            **paired_difference(found[best].right, found[name].right, scale=100),
            against=f"{name} (the best squash is: {best})",
        )
        for claim, name in ((AS_S4D, STATE_SPACE), (AS_UNSQUASHED, NONE))
    ]
    for name in (SQUASH, GEOMETRIC, STATE_SPACE):
        rows += _beside_none(name, found[NONE], found[name])
    return rows


def _beside_none(name: str, none: _Outcome, outcome: _Outcome) -> list[Row]:
    accuracy = Row(
        metric=f"accuracy, {name}", kind="quality", unit="%", better="higher", bar_on="difference",
        against=NONE, **paired_difference(outcome.right, none.right, scale=100),
    )  # fmt: skip
    roughness = Row(
        metric=f"roughness of the spectra, {name}", kind="other", unit="", better="lower",
        baseline=none.roughness, method=outcome.roughness, against=NONE,
    )  # fmt: skip
    return [accuracy, roughness]


def _arms(length: int) -> Mapping[str, Callable[[int], nn.Module]]:
    none = KernelRegulariser(dropout=KERNEL_DROPOUT)
    squash = KernelRegulariser(threshold=THRESHOLD, dropout=KERNEL_DROPOUT)
    return {
        NONE: lambda d: LongConv(d, length, regulariser=none, init=random_kernel),
        SQUASH: lambda d: LongConv(d, length, regulariser=squash, init=random_kernel),
        GEOMETRIC: lambda d: LongConv(d, length, regulariser=squash, init=geometric_kernel),
        STATE_SPACE: S4D,
    }


def _train(layer: Callable[[int], nn.Module], task: PixelTask, size: PixelExperiment, seed: int) -> _Outcome:
    torch.manual_seed(seed)
    model = SequenceClassifier(
        layer, d_input=1, d_model=size.d_model, n_layers=size.n_layers, n_classes=10, norm="batch"
    )
    steps = max(1, size.epochs * len(task.train) // BATCH)
    plan = TrainingPlan(steps, LEARNING_RATE, weight_decay=WEIGHT_DECAY, warmup_steps=steps // 10, seed=seed)
    batches = ShuffledBatches(task.train.x, task.train.labels, batch_size=BATCH, seed=seed)
    Trainer(model, lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]), plan).run(batches)
    right = hits(model.eval(), task.test.x, task.test.labels, batch_size=250)
    return _Outcome(
        right[size.chosen_on :],
        float(right[: size.chosen_on].double().mean()),
        _roughness(model, len(task.train.x[0])),
    )


@torch.no_grad()
def _roughness(model: nn.Module, length: int) -> float:
    """The mean over layers of the roughness of the kernels' spectra."""
    kernels = []
    for module in model.modules():
        if isinstance(module, LongFilter):
            kernels.append(module.regularised_kernels()[0])
        elif isinstance(module, StateSpace):
            kernels.append(module.kernel(length))
    return sum(map(spectral_roughness, kernels)) / len(kernels)
