"""What both models write after held-out prompts: groups, fields that are right, bytes, and the nats of
prose."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional as F

from shoestring.data.mixed_examples import TokenExample
from shoestring.data.structured_text import read_fields
from shoestring.generation.decode import Generation, generate
from shoestring.generation.hamburger.scoring import score_response
from shoestring.models.decoder import Decoder
from shoestring.models.hamburger import Hamburger
from shoestring.systems.hamburger.claims import (
    BYTES,
    COMPRESSION,
    CONFIDENCE,
    FIELDS,
    JSON,
    LEVELS,
    LOSS,
    MONOTONE,
    PROSE,
)
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.paired_difference import paired_difference

JSON_TOKENS, PROSE_TOKENS = 128, 96
"""The most that is written after a prompt."""


@dataclass(frozen=True)
class Written:
    """The outputs of one model after the same prompts."""

    outputs: tuple[Generation, ...]

    @property
    def compression(self) -> float:
        """Tokens for each group: the prompt's pass gives the first group, every further pass another."""
        return sum(len(one.tokens) for one in self.outputs) / sum(one.passes + 1 for one in self.outputs)

    @property
    def cache_bytes(self) -> float:
        """Mean over the outputs."""
        return sum(one.cache_bytes for one in self.outputs) / len(self.outputs)


@dataclass(frozen=True)
class Prompts:
    """Prompts of records with the fields that are right; pieces of prose with what follows."""

    records: tuple[tuple[str, dict[str, Any]], ...]
    prose: tuple[TokenExample, ...]


def write_records(model: Decoder | Hamburger, prompts: Prompts, tokenizer: Any) -> Written:
    """Greedy continuations of the records' prompts."""
    return Written(
        tuple(generate(model, prompt, tokenizer, max_new_tokens=JSON_TOKENS) for prompt, _ in prompts.records)
    )


def write_prose(model: Decoder | Hamburger, prompts: Prompts, tokens: int = PROSE_TOKENS) -> Written:
    """Greedy continuations of the pieces, all of one length."""
    return Written(
        tuple(
            generate(model, piece.ids[: piece.prompt_length].tolist(), max_new_tokens=tokens, stop_tokens=())
            for piece in prompts.prose
        )
    )


def right_shares(written: Written, prompts: Prompts) -> list[float]:
    """Of each record the share of its fields, in percent, that are as they should be, text included
    around."""
    shares = []
    for output, (_, fields) in zip(written.outputs, prompts.records, strict=True):
        found = read_fields(output.text)
        # True is 1 in Python, but not in JSON.
        right = [repr(found.get(name)) == repr(value) for name, value in fields.items()]
        shares.append(100 * sum(right) / len(right))
    return shares


def quality_rows(
    model: Hamburger, baseline: Decoder, prompts: Prompts, tokenizer: Any
) -> tuple[list[Row], list[str]]:
    """Everything but speed, and notes on each level of confidence."""
    plain = write_records(baseline, prompts, tokenizer)
    records, prose = {}, {}
    for level in sorted({*LEVELS, CONFIDENCE}, reverse=True):
        model.confidence = level
        records[level], prose[level] = write_records(model, prompts, tokenizer), write_prose(model, prompts)
    model.confidence = CONFIDENCE
    theirs, ours = right_shares(plain, prompts), right_shares(records[CONFIDENCE], prompts)
    rows = [
        COMPRESSION[JSON].row(baseline=1.0, method=records[CONFIDENCE].compression),
        COMPRESSION[PROSE].row(baseline=1.0, method=prose[CONFIDENCE].compression),
        BYTES.row(baseline=plain.cache_bytes, method=records[CONFIDENCE].cache_bytes),
        FIELDS.row(**paired_difference(torch.tensor(ours), torch.tensor(theirs))),
        MONOTONE.row(
            baseline=None,
            method=least_growth([math.sqrt(records[c].compression * prose[c].compression) for c in LEVELS]),
        ),
        LOSS.row(baseline=prose_nats(baseline, prompts), method=prose_nats(model, prompts)),
    ]
    notes = [
        f"confidence {level}: {records[level].compression:.3f} tokens per slot and "
        f"{_mean(right_shares(records[level], prompts)):.1f} % of the fields on {JSON}, "
        f"{prose[level].compression:.3f} on {PROSE}"
        for level in LEVELS
    ]
    return rows, notes


def prose_nats(model: Decoder | Hamburger, prompts: Prompts) -> float:
    """Nats per token of what really follows each piece; a HAMburger reads it in groups of its own."""
    found = []
    for piece in prompts.prose:
        prompt, rest = piece.ids[: piece.prompt_length].tolist(), piece.ids[piece.prompt_length :].tolist()
        if isinstance(model, Hamburger):
            found.append(-score_response(model, prompt, rest, "model").log_p)
            continue
        with torch.inference_mode():
            logits = model(piece.ids[None]).logits[0, piece.prompt_length - 1 : -1]
        found.append(F.cross_entropy(logits.float(), piece.ids[piece.prompt_length :], reduction="none"))
    return float(torch.cat(found).mean())


def least_growth(compressions: Sequence[float]) -> float:
    """The smallest ratio of one to the one before."""
    return min(after / before for before, after in pairwise(compressions))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
