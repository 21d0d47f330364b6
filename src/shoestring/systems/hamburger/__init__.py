"""HAMburger: groups of tokens that share one pass through the model and one slot of its cache.

Two small models are shipped, each as int8 rows: TinyLM as a HAMburger, and the same TinyLM trained on as long
without groups. `shoestring train hamburger-base`, then `hamburger` and `hamburger-baseline` make them anew.
"""

import json
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch

from shoestring.data.mixed_examples import PROSE_PROMPT, PROSE_RESPONSE, TokenExample
from shoestring.data.structured_text import JsonRecords
from shoestring.errors import MissingData
from shoestring.models.decoder import Decoder
from shoestring.models.hamburger import Hamburger
from shoestring.models.hamburger_checkpoint import load_hamburger, load_small_decoder
from shoestring.models.load import load_tokenizer
from shoestring.notices import record_fallbacks
from shoestring.systems.card import Card, Effort
from shoestring.systems.hamburger.claims import CLAIMS
from shoestring.systems.hamburger.quality import Prompts, quality_rows
from shoestring.systems.hamburger.speed import speed_row
from shoestring.training.hamburger_job import tiny_hamburger
from shoestring.training.tiny_lm import new_tiny_lm, train_tokenizer
from shoestring.yardstick.comparison import Comparison

card = Card(
    slug="hamburger",
    title="HAMburger",
    paper="HAMburger: Accelerating LLM Inference via Token Smashing (2025)",
    year=2025,
    authors_code="Jingyu6/hamburger",
    saves=("memory", "compute", "time"),
    parts=(
        "shoestring.models.hamburger.Hamburger",
        "shoestring.generation.hamburger.GroupSteps",
        "shoestring.generation.hamburger.CompiledGroupRunner",
        "shoestring.generation.hamburger.GroupDraft",
        "shoestring.training.segmentation.segment",
        "shoestring.training.hamburger_training.HamburgerLoss",
    ),
    claims=CLAIMS,
)
SHIPPED = "trained"
"""Folder of package data beside the models."""
RECORDS_SEED = 1000
"""Added to the seed of the experiment: no record of training has it."""
LARGE = (
    "SmolLM2-135M: not measured: training it on its own continuations takes about 30 minutes on a GPU; with "
    "one, HamburgerLoss and the Trainer do it (training/hamburger_training.py)"
)


@dataclass(frozen=True)
class Work:
    """Both models and what they are given. rounds: of timing; timed: prompts in each."""

    model: Hamburger
    baseline: Decoder
    tokenizer: Any
    prompts: Prompts
    rounds: int
    timed: int
    origin: str


def measure(effort: Effort, seed: int) -> Comparison:
    """Both models after the same prompts."""
    work = _tiny(seed) if effort is Effort.SMOKE else _shipped(effort, seed)
    with record_fallbacks() as fallbacks:
        rows, notes = quality_rows(work.model, work.baseline, work.prompts, work.tokenizer)
        timed = Prompts(work.prompts.records[: work.timed], ())
        row, threads = speed_row(work.model, work.baseline, timed, work.tokenizer, work.rounds)
    order = [claim.metric for claim in CLAIMS]
    return Comparison(
        system=card.slug,
        method="HAMburger",
        baseline="the same model, one token a step",
        work="continuations of JSON records and Shakespeare",
        rows=tuple(sorted([*rows, row], key=lambda row: order.index(row.metric))),
        effort=effort,
        seed=seed,
        notes=(
            work.origin,
            threads,
            *notes,
            LARGE,
            *fallbacks,
        ),
    )


def _shipped(effort: Effort, seed: int) -> Work:
    """The trained models. Raises: MissingData where they are not installed."""
    place = files("shoestring.models") / SHIPPED
    with as_file(place) as folder:
        if not (folder / "hamburger").is_dir():
            raise MissingData(f"the trained models are not in {folder}; install the package with its data.")
        model, baseline = (
            load_hamburger(folder / "hamburger"),
            load_small_decoder(folder / "hamburger-baseline"),
        )
        tokenizer, prose = (
            load_tokenizer(folder / "hamburger"),
            held_out_prose(folder / "hamburger-prose.json"),
        )
    full = effort is Effort.FULL
    prompts = Prompts(
        _records(seed, 400 if full else 120), _pieces(tokenizer.encode(prose), 160 if full else 48)
    )
    origin = "records of seeds that no training saw; Shakespeare from behind what was trained on"
    return Work(model, baseline, tokenizer, prompts, 15 if full else 7, 20, origin)


def held_out_prose(file: Path) -> str:
    """The text that follows what both models were trained on."""
    return json.loads(file.read_text(encoding="utf-8"))["text"]


def _records(seed: int, count: int) -> tuple[tuple[str, dict[str, Any]], ...]:
    records = JsonRecords(RECORDS_SEED + seed)
    return tuple((example.prompt, fields) for example, fields in map(records.draw, range(count)))


def _pieces(ids: list[int], count: int) -> tuple[TokenExample, ...]:
    """Pieces at even distances."""
    length = PROSE_PROMPT + PROSE_RESPONSE
    starts = torch.linspace(0, len(ids) - length, count).long().tolist()
    return tuple(TokenExample(torch.tensor(ids[s : s + length]), PROSE_PROMPT) for s in starts)


def _tiny(seed: int) -> Work:
    """Untrained models and few prompts: figures say nothing."""
    prose = "To be, or not to be: that is the question. " * 40
    tokenizer = train_tokenizer(prose, seed, vocab_size=300, samples=20)
    base = new_tiny_lm(seed, vocab_size=len(tokenizer), layers=3).requires_grad_(False).eval()
    model = tiny_hamburger(base, seed).requires_grad_(False).eval()
    prompts = Prompts(_records(seed, 2), _pieces(tokenizer.encode(prose), 2))
    return Work(model, base, tokenizer, prompts, 3, 1, "untrained models of three layers")
