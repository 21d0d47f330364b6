"""Train a Glide draft to predict what its frozen target predicts.

The paper's loss is the cross-entropy of the next token of a text. Here it is that of the target's whole
next-token distribution: what a draft is for is to say what the target says, and one token drawn from the
distribution tells less of it.

Source: Yang et al. 2025, "LongSpec", section 3.2: cross-attention lags by 1 to 4 tokens, as it does while a
draft runs ahead of its target; short samples stand at far positions behind a few anchors at the start.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoestring.data.seeded import torch_generator
from shoestring.layers.attention_masks import KVView
from shoestring.models.decoder import Decoder
from shoestring.models.glide_checkpoint import save_glide
from shoestring.models.glide_draft import GlideDraft
from shoestring.training.glide_text import GlideText, Written
from shoestring.training.shared_head import shared_head_kl

MOST_LAG = 4


@dataclass(frozen=True)
class GlideBatches:
    """step -> (written text, lag of this step)."""

    text: GlideText

    def __call__(self, step: int) -> tuple[Written, int]:
        """Of one step; the lag is drawn for the whole batch."""
        generator = torch_generator(self.text.seed, step, 1)
        return self.text(step), int(torch.randint(1, MOST_LAG + 1, (), generator=generator))


@dataclass(frozen=True)
class GlideLoss:
    """Mean over tokens of KL(target‖draft) of the next token, both among what the draft can draft."""

    target: Decoder

    def __call__(self, draft: nn.Module, batch: Any) -> Float[Tensor, ""]:
        """Of a `GlideDraft`. batch: as `GlideBatches` gives it."""
        text, lag = batch
        states = draft_states(draft, self.target, text, lag)
        head = self.target.lm_head.weight
        assert isinstance(head, Tensor)
        assert isinstance(draft, GlideDraft)
        return shared_head_kl(states, text.states, draft.head_rows(head.detach()))


def draft_states(
    draft: nn.Module, target: Decoder, text: Written, lag: int
) -> Float[Tensor, "samples length hidden"]:
    """What goes to the head for every token of a text."""
    assert isinstance(draft, GlideDraft)
    pos = text.pos.expand(text.ids.shape)
    with torch.no_grad():
        x = target.model.embed_tokens(text.ids).to(draft.q_proj.weight.dtype)
    hidden = draft(x, pos, KVView(text.keys, text.values, pos[:, None]), lag)
    return draft.to_head(target, hidden)


@torch.no_grad()
def passes_per_token(
    draft: nn.Module, target: Decoder, text: Written, prompt: int, drafted: int = 3
) -> float:
    """Passes of the target for each token of greedy text after its first `prompt` tokens, where every pass
    verifies `drafted` tokens: 1 / (mean accepted + 1). From 1 down to 1 / (drafted + 1).

    A draft is begun at every token, and goes on from tokens that were right, as it does in decoding.
    """
    assert isinstance(draft, GlideDraft)
    assert isinstance(target.lm_head.weight, Tensor)
    head = draft.head_rows(target.lm_head.weight)
    right = torch.ones(len(text.ids), text.ids.shape[1] - prompt - drafted, dtype=torch.bool)
    emitted = torch.ones(right.shape)
    last = text.ids.shape[1] - drafted
    for lag in range(1, drafted + 1):
        rows = slice(prompt + lag - 1, last + lag - 1)
        states = draft_states(draft, target, text, lag)[:, rows]
        said = draft.tokens((states.to(head.dtype) @ head.T).argmax(-1))
        right &= said == text.ids[:, prompt + lag : last + lag]
        emitted += right
    return 1 / float(emitted.mean())


def save_trained(draft: nn.Module, place: Path) -> None:
    """The draft as int8, under `place`."""
    assert isinstance(draft, GlideDraft)
    save_glide(draft, place / "draft")
