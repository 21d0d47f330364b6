"""Trained models factored after the fact: a sentence encoder at three ranks, then tuned; a language model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoestring.compression.auto_factorize import auto_fact
from shoestring.compression.calibration import capture
from shoestring.compression.factor_solvers import ActivationAware, Factors, Solver, TruncatedSVD
from shoestring.data.text import token_windows
from shoestring.models.sentence_encoder import embed, load_sentence_encoder, padded_batches
from shoestring.systems.greenformers.claims import AWARE, SHARES
from shoestring.systems.language_task import LanguageTask, corpus_halves
from shoestring.training import Trainer, TrainingPlan
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.language_quality import perplexity

TUNED_SHARE, PERPLEXITY_SHARE = 0.5, 0.75
WORDS = 6, 48
"""Fewest and most words of a sentence that is used."""

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class EncoderSettings:
    """How much text, and how long the factored encoder is tuned."""

    windows: int = 128
    window: int = 64
    sentences: int = 256
    tuning_steps: int = 60
    tuning_batch: int = 32
    learning_rate: float = 3e-4


@dataclass(frozen=True)
class EncoderTask:
    """An encoder; windows of ids and batches of sentences to calibrate and tune on; others to judge.

    parts: the modules that are factored. origin: which model and text.
    """

    model: nn.Module
    windows: Tensor
    tuning: Sequence[Batch]
    held_out: Sequence[Batch]
    parts: tuple[str, ...]
    origin: str


def encoder_task(settings: EncoderSettings) -> EncoderTask:
    """all-MiniLM-L6-v2 on `$SHOESTRING_TEXT` or WikiText-2, one half to calibrate, the other to judge.

    Raises: MissingData if the model is not installed; ValueError if the text has too few sentences.
    """
    model, tokenizer = load_sentence_encoder()
    halves = corpus_halves("wikitext2-valid")
    windows = token_windows(
        halves.calibration, _Quiet(tokenizer), settings.window, limit=settings.windows, name=halves.name
    )
    tuned = settings.tuning_batch * settings.tuning_steps
    parts = []
    for text, most in ((halves.calibration, tuned), (halves.held_out, settings.sentences)):
        found = spread(sentences_of(text), most)
        if len(found) < 2:
            raise ValueError(f"{halves.name} has {len(found)} sentences in one half; give a longer text.")
        parts.append([tokenizer.encode(s, truncation=True, max_length=128) for s in found])
    pad = tokenizer.pad_token_id
    origin = (
        f"all-MiniLM-L6-v2; {halves.name}, {len(windows)} windows of {settings.window} tokens to calibrate "
        f"and {len(parts[0])} sentences to tune on from one half, {len(parts[1])} to judge from the other"
    )
    tuning = padded_batches(parts[0], settings.tuning_batch, pad)
    return EncoderTask(model, windows, tuning, padded_batches(parts[1], 64, pad), ("encoder",), origin)


def encoder_rows(task: EncoderTask, settings: EncoderSettings, seed: int) -> list[Row]:
    """Rows of cosine and agreement at every share of the ranks, and of what tuning brings back."""
    dense = embeddings(task.model, task.held_out)
    calibration = capture(task.model, [window[None] for window in task.windows])
    rows, tuned = [], None
    solvers = Remembered(TruncatedSVD()), Remembered(ActivationAware(calibration))
    for share in SHARES:
        plain, aware = (_factored(task, share, solver) for solver in solvers)
        rows += _share_rows(dense, embeddings(plain, task.held_out), embeddings(aware, task.held_out), share)
        tuned = aware if share == TUNED_SHARE else tuned
    assert tuned is not None
    before = embeddings(tuned, task.held_out)
    tune(tuned, task, settings, seed)
    return [*rows, *_tuned_rows(dense, before, embeddings(tuned, task.held_out), settings)]


def language_rows(task: LanguageTask) -> list[Row]:
    """Perplexity of a language model whose blocks are factored, plainly and by known inputs."""
    calibration = capture(task.model, task.calibration.split(1))
    dense = perplexity(task.model, task.held_out).ppl
    solvers: dict[str, Solver] = {"SVD": TruncatedSVD(), "known inputs": ActivationAware(calibration)}
    rows = []
    for name, solver in solvers.items():
        blocks = [n for n, _ in task.model.named_modules() if n.rpartition(".")[2] == "layers"]
        thin = auto_fact(task.model, PERPLEXITY_SHARE, solver, submodules=blocks, deepcopy=True)
        rows.append(
            Row(metric=f"perplexity of a language model at 75 %, {name}", kind="quality", unit="",
                better="lower", baseline=dense, method=perplexity(thin, task.held_out).ppl)
        )  # fmt: skip
    return rows


def sentences_of(text: str) -> list[str]:
    """The sentences of a text by their final marks, without those that are very short or long, each once."""
    plain = " ".join(text.split())
    found = dict.fromkeys(re.split(r"(?<=[.!?])\s+(?=[\"'(]?[A-Z])", plain))
    return [s for s in found if WORDS[0] <= len(s.split()) <= WORDS[1]]


def spread(sentences: Sequence[str], most: int) -> list[str]:
    """At most so many of them, evenly from the whole text."""
    if len(sentences) <= most:
        return list(sentences)
    return [sentences[i * len(sentences) // most] for i in range(most)]


@torch.no_grad()
def embeddings(model: nn.Module, batches: Sequence[Batch]) -> Float[Tensor, "sentences channels"]:
    """Of all sentences, in their order."""
    return torch.cat([embed(model, ids, mask) for ids, mask in batches])


def agreement(ours: Float[Tensor, "n channels"], theirs: Float[Tensor, "n channels"]) -> float:
    """The share of sentences whose nearest other sentence is the same one for both."""
    nearest = [(e @ e.T).fill_diagonal_(-torch.inf).argmax(1) for e in (ours, theirs)]
    return (nearest[0] == nearest[1]).double().mean().item()


def tune(model: nn.Module, task: EncoderTask, settings: EncoderSettings, seed: int) -> None:
    """Train the factored encoder until its embeddings are those of the dense one, for a few steps."""
    with torch.no_grad():
        goals = [embed(task.model, ids, mask) for ids, mask in task.tuning]

    def loss(student: nn.Module, batch: Any) -> Tensor:
        ids, mask, goal = batch
        return 1 - (embed(student, ids, mask) * goal).sum(-1).mean()

    def batches(step: int) -> Any:
        at = step % len(goals)
        return *task.tuning[at], goals[at]

    plan = TrainingPlan(
        settings.tuning_steps, settings.learning_rate, warmup_steps=settings.tuning_steps // 10, seed=seed
    )
    Trainer(model, loss, plan).run(batches)


def _factored(task: EncoderTask, share: float, solver: Solver) -> nn.Module:
    return auto_fact(task.model, share, solver, submodules=task.parts, deepcopy=True)


def _share_rows(dense: Tensor, plain: Tensor, aware: Tensor, share: float) -> list[Row]:
    level = f"{share:.0%}".replace("%", " %")
    cosines = [(dense * e).sum(-1).mean().item() for e in (plain, aware)]
    same = [100 * agreement(e, dense) for e in (plain, aware)]
    return [
        AWARE[share].row(baseline=cosines[0], method=cosines[1], against="plain SVD"),
        Row(metric=f"same nearest sentence, factors by known inputs, {level}", kind="quality", unit="%",
            better="higher", baseline=same[0], method=same[1], against="plain SVD"),
    ]  # fmt: skip


def _tuned_rows(dense: Tensor, before: Tensor, after: Tensor, settings: EncoderSettings) -> list[Row]:
    cosines = [(dense * e).sum(-1).mean().item() for e in (before, after)]
    same = [100 * agreement(e, dense) for e in (before, after)]
    what = f"{TUNED_SHARE:.0%}, tuned for {settings.tuning_steps} steps".replace("%", " %")
    return [
        Row(metric=f"cosine to the dense embeddings, {what}", kind="quality", unit="", better="higher",
            baseline=cosines[0], method=cosines[1], against="before tuning"),
        Row(metric=f"same nearest sentence, {what}", kind="quality", unit="%", better="higher",
            baseline=same[0], method=same[1], against="before tuning"),
    ]  # fmt: skip


@dataclass
class Remembered:
    """Factors of linear layers by singular values, worked out at the first rank and cut to those below it."""

    solver: Solver
    _held: dict[str, Factors] = field(default_factory=dict)

    def factors(self, weight: Tensor, rank: int, name: str) -> Factors:
        if name not in self._held or len(self._held[name][0]) < rank:
            self._held[name] = self.solver.factors(weight, rank, name)
        down, up = self._held[name]
        return down[:rank], up[:, :rank]


class _Quiet:
    """A tokenizer that takes a whole text without a warning about its length, and adds no marks."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
