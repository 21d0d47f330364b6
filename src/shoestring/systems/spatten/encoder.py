"""Token pruning of a sentence encoder: time, and what a linear probe still finds in the embeddings."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from shoestring.data.text import token_windows
from shoestring.generation.spatten import CascadeEncoder, share_schedule
from shoestring.generation.spatten.policy import InvertedRank, RandomRank, Rank
from shoestring.models.sentence_encoder import load_sentence_encoder
from shoestring.systems.spatten.claims import (
    ENCODER_ACCURACY,
    ENCODER_INVERTED,
    ENCODER_RANDOM,
    ENCODER_TIME,
)
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.linear_probe import probe_accuracy
from shoestring.yardstick.timing import time_pair

SHARES = (1.0, 0.8, 0.7, 0.6, 0.5, 0.4)
WINDOW, ARTICLES, EACH, BATCH = 256, 24, 10, 8


@dataclass(frozen=True)
class EncoderTask:
    """windows: of each article those to fit on, then those to test on."""

    model: nn.Module
    windows: Int[Tensor, "articles each window"]
    shares: tuple[float, ...]
    origin: str


def minilm_task(text: str, name: str) -> EncoderTask:
    """all-MiniLM-L6-v2 and windows of the longest articles of a text.

    Raises: MissingData if the encoder is not installed; ValueError if the text is too short.
    """
    model, tokenizer = load_sentence_encoder()
    model.requires_grad_(False)
    parts, kind = articles(text)
    inner = WINDOW - 2  # between [CLS] and [SEP]
    found = [token_windows(part, _Plain(tokenizer), inner, limit=EACH, name=name) for part in parts]
    whole = torch.stack([windows for windows in found if len(windows) == EACH][:ARTICLES])
    ends = whole.new_full((*whole.shape[:2], 1), tokenizer.sep_token_id)
    windows = torch.cat([torch.full_like(ends, tokenizer.cls_token_id), whole, ends], 2)
    return EncoderTask(model, windows, SHARES, f"all-MiniLM-L6-v2; {len(windows)} {kind} of {name}")


def tiny_encoder(seed: int) -> EncoderTask:
    """A small random encoder and random tokens, for smoke runs."""
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=32,
        )  # fmt: skip
        model = BertModel(config).eval().requires_grad_(False)
    windows = torch.randint(64, (3, 4, 24), generator=torch.Generator().manual_seed(seed))
    return EncoderTask(model, windows, (1.0, 0.7, 0.5), "a random encoder of three layers on random tokens")


def articles(text: str) -> tuple[list[str], str]:
    """The articles of a text with headings as WikiText has them, the longest first; without, equal parts."""
    parts = re.split(r"(?m)^ = [^=\n]+ = ?$", text)[1:]
    if len(parts) >= ARTICLES:
        return sorted(parts, key=len, reverse=True), "articles"
    size = len(text) // ARTICLES
    return [text[i * size : (i + 1) * size] for i in range(ARTICLES)], "equal parts"


def encoder_rows(task: EncoderTask, seed: int, rounds: int) -> list[Row]:
    """Time of a batch, and accuracy of the probe beside dense, random and inverted."""
    length = task.windows.shape[2]
    schedule = share_schedule(task.shares, length)
    dense, ours = CascadeEncoder(task.model), CascadeEncoder(task.model, schedule)
    batch = task.windows.flatten(0, 1)[:BATCH]
    times = time_pair(lambda: dense(batch), lambda: ours(batch), rounds=rounds, seed=seed)

    def points(rank: Rank | None = None, encoder: CascadeEncoder | None = None) -> float:
        return 100 * _accuracy(encoder or CascadeEncoder(task.model, schedule, rank=rank), task.windows)

    kept, whole = points(), points(encoder=dense)
    return [
        ENCODER_TIME.row(
            baseline=times.baseline_seconds,
            method=times.method_seconds,
            ratio=times.ratio,
            spread=times.spread,
        ),
        ENCODER_ACCURACY.row(baseline=whole, method=kept),
        ENCODER_RANDOM.row(baseline=points(RandomRank(seed)), method=kept, against="random ranking"),
        ENCODER_INVERTED.row(baseline=points(InvertedRank()), method=kept, against="inverted ranking"),
    ]


def _accuracy(encoder: CascadeEncoder, windows: Tensor) -> float:
    count, each, _ = windows.shape
    found = torch.cat([encoder(part).mean() for part in windows.flatten(0, 1).split(BATCH)])
    found = nn.functional.normalize(found, dim=-1).unflatten(0, (count, each))
    labels, half = torch.arange(count)[:, None], each // 2
    fit, test = (part.flatten(0, 1) for part in (found[:, :half], found[:, half:]))
    names = [labels.expand(-1, n).flatten() for n in (half, each - half)]
    return probe_accuracy(fit, names[0], test, names[1], c=30.0)


class _Plain:
    """A tokenizer without special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return ids
