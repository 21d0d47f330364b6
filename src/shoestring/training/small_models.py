"""Small models that are trained here, by name: what they are, on which data, by which plan.

Training one is repeatable by its seed, resumable, and ends in a folder without pickle.
"""

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.data.pixel_sequences import PixelTask, digit_pixels, fashion_pixels
from shoestring.data.shuffled import ShuffledBatches
from shoestring.files import replacing_folder
from shoestring.models.conv_nets import PlainConvNet
from shoestring.training.byte_language_model import ByteText, build_byte_model, save_byte_model
from shoestring.training.checkpoint import model_tensors
from shoestring.training.glide_job import glide_job
from shoestring.training.hamburger_job import baseline_job, hamburger_job
from shoestring.training.job import Job
from shoestring.training.plan import TrainingPlan
from shoestring.training.record import TrainingRecord
from shoestring.training.tiny_lm import tiny_job
from shoestring.training.trainer import Trainer


@dataclass(frozen=True)
class SmallModel:
    """What can be trained by name: `prepare(seed)` loads the data and builds the model."""

    name: str
    about: str
    plan: TrainingPlan
    prepare: Callable[[int], Job]


def train_small_model(
    chosen: SmallModel,
    job: Job,
    folder: Path,
    *,
    seed: int = 0,
    on_step: Callable[[Trainer, int, float], None] | None = None,
) -> TrainingRecord:
    """Train `job` into `folder`: checkpoints under `run`, the finished model under `model`.

    Goes on where a run in that folder stopped. Raises: as `Trainer.run`.
    """
    trainer = Trainer(
        job.model,
        job.loss,
        replace(chosen.plan, seed=seed),
        folder=folder / "run",
        checkpoint_every=50,
        evaluate=job.evaluate,
        on_step=on_step,
    )
    record = trainer.run(job.batches)
    with replacing_folder(folder / "model") as place:
        job.save(job.model, place)
    return record


def seconds_of_a_step(job: Job, plan: TrainingPlan) -> float:
    """How long one batch takes here: making it, forward and backward; the model stays as it is."""
    model = copy.deepcopy(job.model).train()
    half = torch.autocast("cpu", torch.bfloat16, enabled=plan.precision == "bfloat16")
    with torch.random.fork_rng(devices=[]), half:
        for _ in range(2):  # the first one pays for what is loaded on first use
            start = time.perf_counter()
            job.loss(model, job.batches(0)).backward()
            seconds = time.perf_counter() - start
    return seconds


def _classifier(task: PixelTask, batch_size: int, seed: int) -> Job:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PlainConvNet(task.train.height)

    def loss(m: nn.Module, batch: Any) -> Tensor:
        images, labels = batch
        return F.cross_entropy(m(images), labels)

    def error(m: nn.Module) -> float:
        parts = zip(task.test.images.split(500), task.test.labels.split(500), strict=True)
        wrong = sum(int((m(images).argmax(-1) != labels).sum()) for images, labels in parts)
        return wrong / len(task.test)

    def save(m: nn.Module, place: Path) -> None:
        save_file(model_tensors(m), place / "model.safetensors")
        config = {"architecture": "PlainConvNet", "image_size": task.train.height, "n_classes": 10}
        (place / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    batches = ShuffledBatches(task.train.images, task.train.labels, batch_size=batch_size, seed=seed)
    return Job(model, loss, batches, "test error", error, save)


def _digits(seed: int) -> Job:
    return _classifier(digit_pixels(), 64, seed)


def _fashion(seed: int) -> Job:
    return _classifier(fashion_pixels(28), 64, seed)


def _bytes(seed: int) -> Job:
    text = ByteText.of("pydoc", seed)
    model = build_byte_model(seed)
    return Job(model, text.loss, text.batches, "held-out nats per byte", text.held_out_loss, save_byte_model)


GOING_ON = TrainingPlan(
    400, 1e-3, weight_decay=0.1, betas=(0.9, 0.95), warmup_steps=20, final_factor=0.1,
    precision="bfloat16", evaluate_every=200,
)  # fmt: skip

SMALL_MODELS = {
    model.name: model
    for model in (
        SmallModel(
            "digits-classifier",
            "a convolutional classifier of the 8 x 8 digits that come with scikit-learn",
            TrainingPlan(400, 2e-3, warmup_steps=20, evaluate_every=100),
            _digits,
        ),
        SmallModel(
            "fashion-classifier",
            "the same on Fashion-MNIST, 28 x 28",
            TrainingPlan(2000, 1e-3, warmup_steps=50, evaluate_every=1000),
            _fashion,
        ),
        SmallModel(
            "pydoc-bytes",
            "a Llama of 0.8 M parameters that writes the standard library's help, byte by byte",
            TrainingPlan(600, 2e-3, weight_decay=0.1, betas=(0.9, 0.95), warmup_steps=50, evaluate_every=300),
            _bytes,
        ),
        SmallModel(
            "longspec-draft",
            "a layer that drafts for SmolLM2-135M, on text that it writes itself; an hour or two of one core",
            TrainingPlan(
                2688,
                1.5e-2,
                weight_decay=0.1,
                optimizer="muon",
                betas=(0.9, 0.95),
                warmup_steps=40,
                precision="bfloat16",
                evaluate_every=128,
            ),
            glide_job,
        ),
        SmallModel(
            "hamburger-base",
            "TinyLM: a Llama of 3 M parameters that writes JSON records, Python classes and Shakespeare",
            TrainingPlan(
                1600,
                2e-3,
                weight_decay=0.1,
                betas=(0.9, 0.95),
                warmup_steps=60,
                final_factor=0.1,
                precision="bfloat16",
                evaluate_every=400,
            ),
            tiny_job,
        ),
        SmallModel(
            "hamburger",
            "TinyLM trained on to emit groups of tokens; needs hamburger-base",
            GOING_ON,
            hamburger_job,
        ),
        SmallModel(
            "hamburger-baseline",
            "TinyLM trained on as long without groups; needs hamburger-base",
            GOING_ON,
            baseline_job,
        ),
    )
}


def find_small_model(name: str) -> SmallModel:
    """The model of that name. Raises: ValueError listing the names there are."""
    if name not in SMALL_MODELS:
        raise ValueError(f"model {name!r} is not known; use {', '.join(SMALL_MODELS)}")
    return SMALL_MODELS[name]
