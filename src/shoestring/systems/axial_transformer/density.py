"""Bits per dimension after the same seconds of training: axial, full and local attention."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoestring.data.digits import load_digits
from shoestring.data.fashion_mnist import load_fashion_mnist
from shoestring.data.photos import photo_crops
from shoestring.data.shuffled import ShuffledBatches
from shoestring.errors import MissingExtra
from shoestring.models.axial_image_config import AxialImageConfig
from shoestring.models.axial_image_model import AxialImageModel
from shoestring.systems.axial_transformer.claims import FULL, LOCAL
from shoestring.systems.axial_transformer.rivals import RowMajorModel
from shoestring.training.plan import TrainingPlan
from shoestring.training.trainer import Trainer
from shoestring.training.weight_average import WeightAverage
from shoestring.yardstick.bits_per_dimension import bits_per_dimension, mean_bits
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.timing import time_interleaved

VALUES = 16
Images = Int[Tensor, "n channels height width"]
HeldOut = Int[Tensor, "n_held_out channels height width"]
Task = tuple[Images, HeldOut]
"""Pictures to train on and pictures to judge by."""


@dataclass(frozen=True)
class DensitySettings:
    """seconds: of training, for each model. rates: the learning rate of each, found by short runs."""

    seconds: float
    batch: int = 16
    judged: int = 1000
    rounds: int = 5
    dim: int = 64


RATES = {"axial": 1e-2, "full": 1e-2, "local": 1e-2}
DECAY = 0.99


def density_rows(task: Task, settings: DensitySettings, seed: int) -> tuple[list[Row], list[str]]:
    """Rows of held-out bits per dimension of the three, and notes on how long each was trained."""
    train, held_out = task
    models = _models(train.shape[2], train.shape[3], settings.dim, seed)
    batches = ShuffledBatches(train, batch_size=settings.batch, seed=seed)
    steps = _equal_steps(models, batches(0)[0], settings)
    bits, notes = {}, []
    for name, model in models.items():
        record = train_density(model, batches, steps[name], RATES[name], seed)
        bits[name] = _judge(record.average, held_out[: settings.judged])
        notes.append(f"{name}: {steps[name]} steps of {settings.batch} pictures, {record.seconds:.0f} s")
    rows = [
        claim.row(baseline=mean_bits(bits[rival]).mean, method=mean_bits(bits["axial"]).mean,
                  spread=mean_bits(bits["axial"] - bits[rival]).spread, against=f"{rival} attention")
        for claim, rival in ((FULL, "full"), (LOCAL, "local"))
    ]  # fmt: skip
    return rows, notes


def fashion_images(side: int, seed: int) -> Task:
    """Fashion-MNIST as means over squares, in 16 grey values: (training, held out in random order)."""
    data = load_fashion_mnist()
    order = np.random.default_rng(seed).permutation(len(data.test))
    return grey(data.train.images, 28 // side), grey(data.test.images[order], 28 // side)


def digit_images(seed: int) -> Task:
    """The 8 x 8 digits in 16 grey values."""
    data = load_digits(seed)
    return grey(data.train.images, 1), grey(data.test.images, 1)


def grey(images: np.ndarray, pool: int) -> Images:
    """Bytes (n, height, width) as means over squares of `pool` pixels, in 0 … 15, with a channel axis."""
    n, height, width = images.shape
    means = images.reshape(n, height // pool, pool, width // pool, pool).mean((2, 4))
    return torch.from_numpy((means * (VALUES / 256)).astype(np.int64))[:, None]


@dataclass(frozen=True)
class Trained:
    """Averaged weights, and what they took."""

    average: WeightAverage
    seconds: float


def train_density(
    model: nn.Module, batches: Callable[[int], tuple[Tensor, ...]], steps: int, rate: float, seed: int
) -> Trained:
    """Adam, a short warm-up, gradients clipped at 1, weights averaged."""
    plan = TrainingPlan(
        steps=steps, learning_rate=rate, warmup_steps=min(steps, 1 + steps // 20), final_factor=0.02,
        clip_norm=1.0, seed=seed,
    )  # fmt: skip
    average = WeightAverage(model, DECAY)
    generator = torch.Generator().manual_seed(seed)

    def loss(wrapped: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return wrapped.model.loss(batch[0], generator)  # type: ignore[operator, union-attr]

    record = Trainer(average, loss, plan, on_step=average.on_step).run(batches)
    return Trained(average, record.seconds)


def colour_row(steps: int, seed: int) -> tuple[list[Row], list[str]]:
    """The whole path of three channels and 256 values on crops of photographs; nothing is judged."""
    metric = "bits per dimension of 8 x 8 crops of photographs, RGB"
    try:
        crops = torch.from_numpy(photo_crops(512, 8, seed=seed)).long()
    except MissingExtra as error:
        return [], [f"{metric}: not measured, {error}"]
    cfg = AxialImageConfig(height=8, width=8, channels=3, dim=48)
    model = _seeded(lambda: AxialImageModel(cfg), seed)
    fresh = _judge(WeightAverage(model), crops[448:])
    batches = ShuffledBatches(crops[:448], batch_size=16, seed=seed)
    trained = train_density(model, batches, steps, RATES["axial"], seed)
    row = Row(
        metric=metric, kind="quality", unit="bit", better="lower", baseline=fresh.mean().item(),
        method=_judge(trained.average, crops[448:]).mean().item(), against="the fresh model",
    )  # fmt: skip
    return [row], [f"RGB crops: {steps} steps of 16 crops"]


def _models(height: int, width: int, dim: int, seed: int) -> dict[str, nn.Module]:
    cfg = AxialImageConfig(
        height=height, width=width, channels=1, n_values=VALUES, dim=dim, encoder_layers=0, outer_layers=2,
        inner_layers=2,
    )  # fmt: skip
    layers = cfg.outer_layers + cfg.inner_layers
    return {
        "axial": _seeded(lambda: AxialImageModel(cfg), seed),
        "full": _seeded(lambda: RowMajorModel(cfg, layers), seed),
        "local": _seeded(lambda: RowMajorModel(cfg, layers, window=height + width), seed),
    }


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _equal_steps(models: Mapping[str, nn.Module], batch: Images, settings: DensitySettings) -> dict[str, int]:
    """How many steps of each take `settings.seconds`, from the times of steps taken in turns."""

    def step(model: nn.Module) -> Callable[[], None]:
        def work() -> None:
            model.loss(batch).backward()  # type: ignore[operator]

        return work

    timed = time_interleaved({name: step(model) for name, model in models.items()}, rounds=settings.rounds)
    for model in models.values():
        model.zero_grad(set_to_none=True)
    return {name: max(2, round(settings.seconds / timed.median(name))) for name in models}


@torch.inference_mode()
def _judge(average: WeightAverage, images: Images) -> Float[Tensor, " n"]:
    with average.applied() as model:
        model.eval()
        parts = images.split(100)
        return torch.cat([bits_per_dimension(model(part), part) for part in parts])
