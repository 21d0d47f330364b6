"""Train a HAMburger: its base and new parts together, on responses that the base itself has cut into groups.

Loss = cross-entropy over all tokens + 0.5 · binary cross-entropy of the stop head (1 at the last token of
each group) + optionally a weight times KL to a frozen base, one row per token.

Source: Liu and Zhang 2025, "HAMburger: Accelerating LLM Inference via Token Smashing", section 3.3. The
published KL aligner inserts a row for "stop" into every group, which the published model does not emit; here
rows are tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.data.mixed_examples import TokenExample
from shoestring.models.decoder import Decoder
from shoestring.models.hamburger import Hamburger, naive_merge
from shoestring.training.hamburger_batch import GroupBatch
from shoestring.training.packed_text import PackedText, WithinExamples
from shoestring.training.segmentation import Decreasing, JoinRule, response_entropies, segment

STOP_WEIGHT = 0.5


@dataclass(frozen=True)
class GroupOutput:
    """What the model gives in the place of every token, in the order of groups and steps."""

    logits: Float[Tensor, "tokens vocab"]
    stop: Float[Tensor, " tokens"]


def teacher_forced(model: Hamburger, batch: GroupBatch) -> GroupOutput:
    """Logits and stop logits of all tokens of all groups, each from the true tokens before it."""
    embedded = model.base.model.embed_tokens(batch.ids)
    fed = batch.fed[:, 0] >= 0
    if bool(fed.any()):
        merged = model.merge(batch.tokens[fed], batch.sizes[fed]).to(embedded.dtype)
        embedded = embedded.index_put(tuple(batch.fed[fed].unbind(1)), merged)
    states = model.read(embedded, batch.rows.pos, None, (WithinExamples(batch.rows),))
    features = states[tuple(batch.state.unbind(1))]
    hidden = _all_steps(model, features, batch)[step_mask(batch)]
    return GroupOutput(_wide(model.base.lm_head(hidden)), _wide(model.stop(hidden)[:, 0]))


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def step_mask(batch: GroupBatch) -> Bool[Tensor, "groups steps"]:
    """Which steps of each group are tokens; what is behind them is padding."""
    return torch.arange(batch.tokens.shape[1], device=batch.sizes.device) < batch.sizes[:, None]


def _all_steps(model: Hamburger, features: Tensor, batch: GroupBatch) -> Float[Tensor, "groups steps hidden"]:
    """What goes to the head: the base's state for the first token, the micro decoder's for the others."""
    first, longer = features[:, -1:], batch.sizes > 1
    steps = batch.tokens.shape[1]
    rest = first.new_zeros(len(first), steps - 1, first.shape[-1])
    if bool(longer.any()):
        before = model.base.model.embed_tokens(batch.tokens[longer, :-1].clamp(min=0))
        x = torch.cat([features[longer], before.to(features.dtype)], 1)
        made = model.micro(x)[:, features.shape[1] :].to(rest.dtype)
        rest = rest.index_put((longer.nonzero()[:, 0],), made)
    return torch.cat([first, rest], 1)


@dataclass(frozen=True)
class HamburgerLoss:
    """Of examples, segmented by `segmenter`, the frozen base. teacher_weight: of the KL to it; 0 is without.

    Raises: ValueError for a weight below 0.
    """

    segmenter: Decoder
    rule: JoinRule = Decreasing()  # noqa: RUF009  (frozen)
    teacher_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.teacher_weight < 0:
            raise ValueError(f"teacher_weight={self.teacher_weight} must be 0 or more.")

    def groups(self, examples: Sequence[TokenExample], max_steps: int) -> list[list[int]]:
        """Of each example the sizes of its groups."""
        found = response_entropies(self.segmenter, examples)
        return [segment(entropies.tolist(), max_steps, self.rule) for entropies in found]

    def __call__(self, model: nn.Module, examples: Sequence[TokenExample]) -> Float[Tensor, ""]:
        """Of a `Hamburger`."""
        assert isinstance(model, Hamburger)
        steps = model.options.max_steps
        batch = GroupBatch.of(examples, self.groups(examples, steps), steps)
        out = teacher_forced(model, batch)
        loss = group_loss(out, batch)
        if not self.teacher_weight:
            return loss
        expected = response_logits(self.segmenter, [e for e in examples if e.response_length])
        apart = F.kl_div(
            out.logits.log_softmax(-1), expected.log_softmax(-1), reduction="batchmean", log_target=True
        )
        return loss + self.teacher_weight * apart


def group_loss(out: GroupOutput, batch: GroupBatch) -> Float[Tensor, ""]:
    """Cross-entropy and stop loss, means over tokens."""
    tokens, step = batch.tokens[step_mask(batch)], torch.arange(1, batch.tokens.shape[1] + 1)
    ends = (step == batch.sizes[:, None])[step_mask(batch)]
    stop = F.binary_cross_entropy_with_logits(out.stop, ends.to(out.stop.dtype))
    return F.cross_entropy(out.logits, tokens) + STOP_WEIGHT * stop


@torch.no_grad()
def response_logits(model: Decoder, examples: Sequence[TokenExample]) -> Float[Tensor, "tokens vocab"]:
    """What a plain decoder gives in the place of every response token, examples one after the other."""
    packed = PackedText.of(examples)
    logits = model(packed.ids, packed.rows.pos, hooks=(WithinExamples(packed.rows),)).logits
    parts = [
        logits[row, start + example.prompt_length - 1 : start + len(example) - 1]
        for (row, start), example in zip(packed.place, examples, strict=True)
    ]
    return torch.cat(parts).float()


def naive_teacher_forced(model: Hamburger, example: TokenExample, sizes: Sequence[int]) -> GroupOutput:
    """`teacher_forced` of one example, group by group: each from all slots before it, with nothing kept."""
    embedding = model.base.model.embed_tokens
    slots = [embedding(token) for token in example.ids[: example.prompt_length]]
    positions, at = list(range(example.prompt_length)), example.prompt_length
    logits, stop = [], []
    for size in sizes:
        x, pos = torch.stack(slots)[None], torch.tensor([positions])
        features = model.read(x, pos, None)[0, -1]
        tokens = example.ids[at : at + size]
        for step in range(size):
            sequence = torch.cat([features, embedding(tokens[:step])])
            hidden = model.micro(sequence[None])[0, -1] if step else features[-1]
            logits.append(model.base.lm_head(hidden))
            stop.append(model.stop(hidden)[0])
        slots.append(naive_merge(model.embedder, embedding(tokens)))
        positions.append(positions[-1] + size)
        at += size
    return GroupOutput(torch.stack(logits), torch.stack(stop))
