"""How an image classifier bears formats and rounding modes: the experiment on networks of `pychop`."""

import copy
from collections.abc import Collection
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor, nn

from shoestring.compression.emulation import emulate
from shoestring.data import load_digits, load_fashion_mnist
from shoestring.layers.emulated import Rounders, emulate_layers
from shoestring.models.conv_nets import PlainConvNet, ResidualNet
from shoestring.numbers.formats import FloatFormat, named_format
from shoestring.numbers.rounder import Rounder
from shoestring.numbers.rounding_bits import Rounding
from shoestring.systems.card import Claim
from shoestring.systems.pychop.claims import (
    ACCURACY,
    AHEAD,
    LOST_UP,
    REGAINED,
    TIMES_LOST_UP,
    accuracy_metric,
)
from shoestring.training.classifier import (
    Inputs,
    Labels,
    Schedule,
    as_tensors,
    cached_classifier,
    hits,
    train_classifier,
)
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.paired_difference import paired_difference

FORMATS = {
    "half": named_format("half"),
    "bf16": named_format("bfloat16"),
    "e5m5": FloatFormat(5, 5),
    "e4m4": FloatFormat(4, 4),
    "e4m3": named_format("e4m3_ieee"),
    "e5m2": named_format("e5m2"),
    "e5m1": FloatFormat(5, 1),
}
MODES = {
    "nearest": Rounding.NEAREST_EVEN,
    "up": Rounding.UP,
    "down": Rounding.DOWN,
    "toward zero": Rounding.TOWARD_ZERO,
    "stochastic": Rounding.STOCHASTIC,
    "stochastic equal": Rounding.STOCHASTIC_EQUAL,
}


@dataclass(frozen=True)
class Task:
    """A trained classifier, its data and which test pictures it names rightly in float32."""

    name: str
    model: nn.Module
    train: tuple[Tensor, Tensor]
    inputs: Inputs
    labels: Labels
    reference: Bool[Tensor, " n"]


def digits_task(seed: int) -> Task:
    data = load_digits(seed)
    train, test = as_tensors(data.train), as_tensors(data.test)
    model = cached_classifier("digits", lambda: PlainConvNet(8), *train, Schedule(40, seed=seed))
    return Task("digits", model, train, *test, hits(model, *test))


def fashion_mnist_task(seed: int) -> Task:
    data = load_fashion_mnist()
    train, test = as_tensors(data.train), as_tensors(data.test)
    two_epochs = Schedule(2 * len(data.train) // 128, batch_size=128, seed=seed)
    model = cached_classifier("fashion-mnist", PlainConvNet, *train, two_epochs)
    return Task("Fashion-MNIST", model, train, *test, hits(model, *test))


def _emulated_hits(task: Task, model: nn.Module, rounder: Rounder) -> Bool[Tensor, " n"]:
    emulated = emulate(model, weights=rounder, biases=rounder, activations=rounder)
    return hits(emulated, task.inputs, task.labels)


def sensitivity_rows(task: Task, formats: Collection[str], modes: Collection[str], seed: int) -> list[Row]:
    """Accuracy in formats and modes beside float32; what e5m2 rounded up, one of them, costs."""
    found = {
        (name, mode): _emulated_hits(task, task.model, Rounder(FORMATS[name], MODES[mode], seed))
        for name in formats
        for mode in modes
    }
    rows = []
    for (name, mode), right in found.items():
        claim = ACCURACY.get(name) if mode == "nearest" else None
        rows.append(_accuracy_row(accuracy_metric(name, mode), claim, task.reference, right))
    nearest, up = (_percent(task.reference) - _percent(found["e5m2", mode]) for mode in ("nearest", "up"))
    rows.append(LOST_UP.row(baseline=nearest, method=up, against="rounded to nearest"))
    # Less than one picture cannot be told from none, and would make any ratio.
    floor = 100 / len(task.labels)
    rows.append(TIMES_LOST_UP.row(baseline=max(nearest, floor), method=up, against="rounded to nearest"))
    return rows


def training_rows(task: Task, steps: int, seed: int) -> list[Row]:
    """Training with rounded layers, against rounding afterwards with and without as much more training."""
    up = Rounder(FORMATS["e5m2"], Rounding.UP)
    schedule = Schedule(steps, batch_size=128, seed=seed + 1)
    rounded = emulate_layers(task.model, Rounders(weight=up, input=up, output=up, bias=up))
    plain = copy.deepcopy(task.model)
    for model in (rounded, plain):
        train_classifier(model, *task.train, schedule)
    trained = copy.deepcopy(task.model)
    trained.load_state_dict(rounded.state_dict())
    before, longer, after = (_emulated_hits(task, m, up) for m in (task.model, plain, trained))
    lost = _percent(task.reference) - _percent(before)
    share = (_percent(after) - _percent(before)) / lost if lost else float("nan")
    return [
        REGAINED.row(baseline=None, method=share),
        _accuracy_row(AHEAD.metric, AHEAD, longer, after, against="float32 trained as much longer"),
    ]


def deep_rows(task: Task, seed: int) -> list[Row]:
    """A 20-layer residual net, as deep as the paper's nets, in 8 bits."""
    schedule = Schedule(len(task.train[1]) // 128, batch_size=128, seed=seed)
    model = cached_classifier("fashion-mnist-residual", ResidualNet, *task.train, schedule)
    deep = Task(task.name, model, task.train, task.inputs, task.labels, hits(model, task.inputs, task.labels))
    rows = []
    for name in ("e4m3", "e5m2"):
        for mode in MODES:
            right = _emulated_hits(deep, model, Rounder(FORMATS[name], MODES[mode], seed))
            metric = f"20 layers: {accuracy_metric(name, mode)}"
            rows.append(_accuracy_row(metric, None, deep.reference, right))
    return rows


def _percent(right: Bool[Tensor, " n"]) -> float:
    return 100 * float(right.double().mean())


def _accuracy_row(
    metric: str,
    claim: Claim | None,
    reference: Bool[Tensor, " n"],
    right: Bool[Tensor, " n"],
    *,
    against: str = "float32",
) -> Row:
    """Two accuracies on the same pictures; the spread is that of the paired difference."""
    accuracies = paired_difference(right, reference, scale=100)
    if claim is not None:
        return claim.row(**accuracies, against=against)
    return Row(
        metric=metric,
        kind="quality",
        unit="%",
        better="higher",
        **accuracies,
        bar_on="difference",
        against=against,
    )
