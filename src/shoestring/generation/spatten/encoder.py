"""Cascade token pruning of a sentence encoder: a pruned token loses all work from the next feed-forward on.

Source: Wang et al. 2021, "SpAtten", section III-A. The encoder is a `BertModel` of transformers as it is.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from shoestring.generation.selection import marked_slots, top_k
from shoestring.generation.spatten.policy import Rank
from shoestring.generation.spatten.schedule import KeepSchedule
from shoestring.generation.spatten.token_scores import TokenScores
from shoestring.kernels.attention_columns import attention_columns
from shoestring.layers.attention import attend
from shoestring.layers.attention_masks import Full, KVView
from shoestring.models.decoder_step import pick


@dataclass(frozen=True)
class Survivors:
    """What reaches the end: states, and which tokens they are (−1: none)."""

    hidden: Float[Tensor, "batch m channels"]
    index: Int[Tensor, "batch m"]

    def mean(self) -> Float[Tensor, "batch channels"]:
        """The mean state of each sample's survivors."""
        present = (self.index >= 0)[..., None].to(self.hidden.dtype)
        return (self.hidden * present).sum(1) / present.sum(1)


class CascadeEncoder:
    """A `BertModel` that drops tokens while it runs.

    tokens: how many enter each layer (None: all, the dense encoder); those that are not to enter the next
    layer leave before the feed-forward of this one. protect_first: positions that always stay, [CLS] first.
    gamma: see `TokenScores`. rank: another ranking, for controls.

    Raises: TypeError for a model of another kind; ValueError for a schedule of another number of layers, a
    negative protect_first, ids that are not (batch, n), or a sample without tokens; FloatingPointError for
    scores that are NaN.
    """

    def __init__(
        self,
        bert: nn.Module,
        tokens: KeepSchedule | None = None,
        *,
        protect_first: int = 1,
        gamma: float = 1.0,
        rank: Rank | None = None,
    ) -> None:
        if not (hasattr(bert, "embeddings") and hasattr(bert, "encoder")):
            raise TypeError(f"{type(bert).__name__} is no BertModel: it has no `embeddings` and `encoder`.")
        if protect_first < 0:
            raise ValueError(f"protect_first={protect_first} must be 0 or more.")
        model: Any = bert
        self.bert = bert
        self.embeddings: Any = model.embeddings
        self.layers: list[Any] = list(model.encoder.layer)
        if tokens is not None:
            tokens.check_layers(len(self.layers))
        self.tokens, self.protect_first, self.gamma, self.rank = tokens, protect_first, gamma, rank

    @torch.no_grad()
    def __call__(self, ids: Int[Tensor, "batch n"], mask: Bool[Tensor, "batch n"] | None = None) -> Survivors:
        """ids: tokens; mask: which of them are there (None: all)."""
        if mask is not None and not bool(mask.any(1).all()):
            raise ValueError("a sample has no token at all; give each at least one.")
        present = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        index = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape).masked_fill(~present, -1)
        x = self.embeddings(input_ids=ids)
        scores = TokenScores(len(ids), self.gamma, ids.device)
        scores.grow(ids.shape[1])
        if self.tokens is not None and self.tokens[0] < ids.shape[1]:
            raise ValueError(
                f"layer 0 is to get {self.tokens[0]} tokens of {ids.shape[1]}, but no score comes before it."
            )
        for layer, block in enumerate(self.layers):
            x, index = self._layer(layer, block, x, index, scores)
        return Survivors(x, index)

    def _layer(
        self, layer: int, block: Any, x: Tensor, index: Tensor, scores: TokenScores
    ) -> tuple[Tensor, Tensor]:
        last = layer + 1 == len(self.layers)
        inner, out = block.attention.self, block.attention.output
        heads = inner.num_attention_heads
        q, k, v = (linear(x).unflatten(-1, (heads, -1)) for linear in (inner.query, inner.key, inner.value))
        present = None if bool((index >= 0).all()) else index >= 0
        scale = q.shape[-1] ** -0.5
        if self.tokens is None or last:
            valid = None if present is None else present[:, None]
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            attended = attend(q, KVView(k, v, index[:, None], valid), Full(), scale).out.transpose(1, 2)
        else:
            attended, colsum = attention_columns(q, k, v, scale, present)
            scores.add(colsum, index)
        attended = attended.flatten(2)
        if self.tokens is not None and not last:
            kept = self._cut(layer + 1, index, scores)
            if kept is not None:
                x, attended = pick(x, kept), pick(attended, kept)
                index = index.gather(1, kept.clamp(min=0)).masked_fill(kept < 0, -1)
        x = out.LayerNorm(out.dense(attended) + x)
        grown = block.intermediate.intermediate_act_fn(block.intermediate.dense(x))
        return block.output.LayerNorm(block.output.dense(grown) + x), index

    def _cut(self, layer: int, index: Tensor, scores: TokenScores) -> Tensor | None:
        """Places of the tokens that enter `layer`; None: all."""
        assert self.tokens is not None
        if self.tokens[layer] >= index.shape[1]:
            return None
        ranking = scores.sums if self.rank is None else self.rank(scores.sums)
        ranking = ranking.gather(1, index.clamp(min=0))
        safe = index < self.protect_first
        what = f"token scores at layer {layer}"
        return marked_slots(top_k(ranking, self.tokens[layer], protected=safe, valid=index >= 0, what=what))
