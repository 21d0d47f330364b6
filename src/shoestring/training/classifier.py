"""Training of a small image classifier, repeatable by seed and kept in the user's cache."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.data.labelled_images import LabelledImages
from shoestring.files import cache_folder, replacing_file
from shoestring.training.plan import TrainingPlan
from shoestring.training.trainer import Trainer

Inputs = Float[Tensor, "n 1 height width"]
Labels = Int[Tensor, " n"]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: Adam over shuffled batches."""

    steps: int
    batch_size: int = 64
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


def as_tensors(data: LabelledImages) -> tuple[Inputs, Labels]:
    """Pictures as (n, 1, height, width) in 0 .. 1, labels as int64."""
    images = torch.from_numpy(data.images).unsqueeze(1).float() / 255
    return images, torch.from_numpy(data.labels).long()


def train_classifier(model: nn.Module, inputs: Inputs, labels: Labels, schedule: Schedule) -> None:
    """Minimise the cross-entropy, in place; the same seed gives the same weights. Leaves it in eval mode."""
    generator = torch.Generator().manual_seed(schedule.seed)
    wanted = schedule.steps * schedule.batch_size
    epochs = -(-wanted // len(labels))
    order = torch.cat([torch.randperm(len(labels), generator=generator) for _ in range(epochs)])
    rows = order[:wanted].split(schedule.batch_size)
    plan = TrainingPlan(schedule.steps, schedule.lr, optimizer="adam", schedule="constant", clip_norm=None)
    Trainer(model, _cross_entropy, plan).run(lambda step: (inputs[rows[step]], labels[rows[step]]))


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def cached_classifier(
    name: str, build: Callable[[], nn.Module], inputs: Inputs, labels: Labels, schedule: Schedule
) -> nn.Module:
    """`build()` trained by `schedule`, in eval mode; the weights are kept in the user's cache.

    `name` says which model on which data: with the model's layers, the schedule, the data's size and the
    version of torch it makes the key. Initial weights follow `schedule.seed`; the caller's global generator
    is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(schedule.seed)
        model = build()
    configuration = {
        "name": name,
        "layers": repr(model),
        "data": [list(inputs.shape), float(inputs.double().sum()), int(labels.sum())],
        "schedule": asdict(schedule),
        "torch": torch.__version__,
    }
    key = hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder("classifiers") / f"{name}-{key}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    train_classifier(model, inputs, labels, schedule)
    with replacing_file(path) as temporary:
        save_file(model.state_dict(), temporary)
    return model


@torch.inference_mode()
def hits(
    model: nn.Module, inputs: Float[Tensor, "n *sample"], labels: Labels, batch_size: int = 500
) -> Bool[Tensor, " n"]:
    """Which samples the model names rightly. A result that is not a number is a miss."""
    found = []
    for x, y in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
        logits = model(x)
        found.append((logits.argmax(-1) == y) & logits.isfinite().all(-1))
    return torch.cat(found)
