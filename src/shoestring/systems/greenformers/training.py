"""A small language model of characters, dense and of low rank, trained alike from scratch."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.data.text import TextHalves
from shoestring.data.tokens import Characters, TextBatches, token_ids
from shoestring.models.transformer import TransformerLM, TransformerOptions
from shoestring.systems.greenformers.claims import ENERGY, LOSS, SMALLER, STEP
from shoestring.training import Trainer, TrainingPlan
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.energy import Tariff, footprint, saved_share
from shoestring.yardstick.paired_difference import paired_difference
from shoestring.yardstick.timing import InterleavedTimes, time_interleaved

TARIFF = Tariff(watts=65)
"""Assumed of a small server processor; the ratio of two runs does not depend on it."""

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class DesignSettings:
    """Sizes of the model, of the text it sees and of its training; the same for both."""

    d_model: int = 256
    n_heads: int = 4
    n_layers: int = 4
    rank: int = 64
    seq: int = 128
    batch: int = 16
    steps: int = 110
    held_out: int = 48
    learning_rate: float = 1e-3
    rounds: int = 5


@dataclass(frozen=True)
class CharacterText:
    """Ids of the characters of both halves of a text."""

    train: Int[Tensor, " characters"]
    held_out: Int[Tensor, " characters2"]
    vocab_size: int
    name: str


def character_text(halves: TextHalves) -> CharacterText:
    """The halves of a text, one id a character."""
    known = Characters.of(halves.calibration + halves.held_out)
    train, held_out = (token_ids(text, known) for text in (halves.calibration, halves.held_out))
    return CharacterText(train, held_out, len(known), halves.name)


def design_rows(text: CharacterText, settings: DesignSettings, seed: int) -> tuple[list[Row], list[str]]:
    """Rows of size, time, loss and energy of the two, trained for equal steps on equal batches; notes."""
    losses: dict[str, Tensor] = {}
    models = {
        "dense": _model(text, settings, None, seed),
        "low rank": _model(text, settings, settings.rank, seed),
    }
    timed = _step_times(models, text, settings)
    for name, model in models.items():
        train(model, text, settings, seed)
        losses[name] = held_out_losses(model, text, settings)
    sizes = {name: sum(p.numel() for p in m.encoder.blocks.parameters()) for name, m in models.items()}
    rows = [
        SMALLER.row(baseline=sizes["dense"], method=sizes["low rank"]),
        STEP.row(**timed.figures("low rank", "dense")),
        LOSS.row(**paired_difference(losses["low rank"], losses["dense"])),
        _energy_row(timed, settings),
    ]
    saved = saved_share(timed.median("dense"), timed.median("low rank"))
    return rows, [
        f"language model: {text.name}, {text.vocab_size} characters, {settings.steps} steps of "
        f"{settings.batch} x {settings.seq}",
        f"energy: {TARIFF.watts} W and a PUE of {TARIFF.pue} are assumed; {saved:.0%} of the energy, "
        "emissions and cost of the training is saved",
    ]


def train(model: TransformerLM, text: CharacterText, settings: DesignSettings, seed: int) -> None:
    """Train in place; the batch of a step follows from the seed and the step."""
    plan = TrainingPlan(
        settings.steps, settings.learning_rate, weight_decay=0.01, betas=(0.9, 0.98),
        warmup_steps=settings.steps // 10, seed=seed,
    )  # fmt: skip
    Trainer(model, next_character_loss, plan).run(_batches(text, settings, seed))


def next_character_loss(model: nn.Module, batch: Any) -> Float[Tensor, ""]:
    """Mean nats a character. batch: what the model sees, and what follows each character."""
    ids, following = batch
    return F.cross_entropy(model(ids).flatten(0, 1), following.flatten())


@torch.no_grad()
def held_out_losses(
    model: TransformerLM, text: CharacterText, settings: DesignSettings
) -> Float[Tensor, " windows"]:
    """Mean nats a character of each of some windows spread over the half that was not trained on."""
    last = len(text.held_out) - settings.seq - 1
    starts = torch.linspace(0, last, settings.held_out).long()
    windows = text.held_out[starts[:, None] + torch.arange(settings.seq + 1)]
    parts = [(window[:, :-1], window[:, 1:]) for window in windows.split(1)]
    return torch.stack([next_character_loss(model, part) for part in parts]).double()


def _model(text: CharacterText, settings: DesignSettings, rank: int | None, seed: int) -> TransformerLM:
    options = TransformerOptions(
        d_model=settings.d_model, n_heads=settings.n_heads, n_layers=settings.n_layers, rank=rank,
        norm_first=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TransformerLM(text.vocab_size, settings.seq, options)


def _batches(text: CharacterText, settings: DesignSettings, seed: int) -> TextBatches:
    return TextBatches(text.train, settings.seq, settings.batch, seed)


def _step_times(
    models: dict[str, TransformerLM], text: CharacterText, settings: DesignSettings
) -> InterleavedTimes:
    """Whole training steps in turns, on copies: gradients, clipping and optimizer."""
    batch = _batches(text, settings, 0)(0)

    def step_of(model: TransformerLM) -> Callable[[], None]:
        twin = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(twin.parameters(), lr=settings.learning_rate, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            next_character_loss(twin, batch).backward()
            nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
            optimizer.step()

        return step

    works = {name: step_of(model) for name, model in models.items()}
    return time_interleaved(works, rounds=settings.rounds, warmup=1, min_sample_seconds=0)


def _energy_row(timed: InterleavedTimes, settings: DesignSettings) -> Row:
    joules = {
        name: JOULES_PER_KWH * footprint(settings.steps * timed.median(name), TARIFF).kwh
        for name in ("dense", "low rank")
    }
    return ENERGY.row(
        baseline=joules["dense"], method=joules["low rank"], ratio=timed.ratio("low rank", "dense"),
        spread=timed.interval("low rank", "dense"),
    )  # fmt: skip
