"""Train a Glide draft beside its frozen target, on text that the target writes itself.

Source: Yang et al. 2025, "LongSpec", section 3.2: cross-attention lags by 1 to 4 tokens, as it does while a
draft runs ahead of its target; short samples stand at far positions behind a few anchors at the start.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.data.seeded import torch_generator
from shoestring.generation.decoder_runner import decoder_cache
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_step import Want
from shoestring.models.glide_checkpoint import save_glide
from shoestring.models.glide_draft import GlideDraft

MOST_LAG = 4
MOST_SINKS = 4
FARTHEST = 30_000
"""Of the published code; a target of fewer positions sets its own limit."""
RESERVED = 1000
"""Positions at the end of a target's range that are not trained."""


def anchor_offset_positions(
    length: int, max_positions: int, generator: torch.Generator
) -> Int[Tensor, " length"]:
    """0, 1, … for the first `sink` tokens, then `offset` + i for token i: sink and offset are drawn.

    Raises: ValueError for a length that the positions do not hold.
    """
    if not 1 <= length <= max_positions:
        raise ValueError(f"length={length} must be 1 to max_positions={max_positions}.")
    sink = int(torch.randint(MOST_SINKS + 1, (), generator=generator))
    room = max(min(FARTHEST, max_positions - RESERVED) - length, 0)
    offset = int(torch.randint(room + 1, (), generator=generator))
    index = torch.arange(length)
    return torch.where(index < sink, index, offset + index)


@dataclass(frozen=True)
class GlideText:
    """Samples of text that the target writes: the prompt of each is a piece of `prompts`, the rest is drawn.

    Made anew for every step, from the step and the seed alone, so that nothing is stored and a run that was
    stopped sees the same samples.
    """

    target: Decoder
    prompts: Int[Tensor, " tokens"]
    batch: int = 8
    prompt_tokens: int = 32
    length: int = 256
    seed: int = 0

    def __call__(self, step: int) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"], Tensor]:
        """(ids, positions, lag) of one step."""
        generator = torch_generator(self.seed, step)
        start = torch.randint(len(self.prompts) - self.prompt_tokens, (self.batch, 1), generator=generator)
        ids = self._written(self.prompts[start + torch.arange(self.prompt_tokens)], generator)
        pos = anchor_offset_positions(
            ids.shape[1], self.target.cfg.max_position_embeddings or FARTHEST, generator
        )
        lag = torch.randint(1, MOST_LAG + 1, (), generator=generator)
        return ids, pos.expand(self.batch, -1), lag.expand(self.batch)

    @torch.no_grad()
    def _written(self, ids: Tensor, generator: torch.Generator) -> Int[Tensor, "batch length"]:
        cache, new = decoder_cache(self.target, batch=len(ids), capacity=self.length), ids
        while ids.shape[1] < self.length:
            logits = self.target(new, cache=cache, want=Want(logits="last")).logits[:, -1].float()
            new = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, new], 1)
        return ids


@dataclass(frozen=True)
class GlideLoss:
    """Mean cross-entropy of the draft on the next token; the target only gives keys and values."""

    target: Decoder

    def __call__(self, draft: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Float[Tensor, ""]:
        """Of a `GlideDraft`. batch: as `GlideText` gives it."""
        assert isinstance(draft, GlideDraft)
        ids, pos, lag = batch
        with torch.no_grad():
            last = self.target.cfg.num_hidden_layers - 1
            cache = decoder_cache(self.target, batch=len(ids), capacity=ids.shape[1])
            seen = self.target(ids, pos, cache, want=Want(logits=None, kv=(last,))).kv[last]
            x = self.target.model.embed_tokens(ids)
        hidden = draft(x, pos, seen, int(lag[0]))[:, :-1]
        logits = draft.to_logits(self.target, hidden)
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def save_trained(draft: nn.Module, place: Path) -> None:
    """The draft as int8, under `place`."""
    assert isinstance(draft, GlideDraft)
    save_glide(draft, place / "draft")
