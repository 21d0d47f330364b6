"""Cut a response into groups: the first token of each is what was uncertain, those that follow were easy.

Source: Liu and Zhang 2025, "HAMburger: Accelerating LLM Inference via Token Smashing", section 3.2; the rules
are those of the published code.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.data.mixed_examples import TokenExample
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_step import Want
from shoestring.training.packed_text import PackedText, WithinExamples


@runtime_checkable
class JoinRule(Protocol):
    """Whether a token joins the group before it."""

    def joins(self, entropy: float, largest: float) -> bool:
        """entropy: of the token, nats. largest: of the group so far, −1 where there is none."""
        ...


@dataclass(frozen=True)
class Decreasing:
    """A token joins if it is nearly certain, or much surer than the group's least certain one.

    threshold, in nats: 0 for the first form of the rule, which went by the ratio alone.
    Raises: ValueError for a threshold or ratio below 0.
    """

    threshold: float = 0.05
    ratio: float = 0.3

    def __post_init__(self) -> None:
        if self.threshold < 0 or self.ratio < 0:
            raise ValueError(f"threshold={self.threshold}, ratio={self.ratio}: both must be 0 or more.")

    def joins(self, entropy: float, largest: float) -> bool:
        """entropy < threshold, or entropy < ratio · largest."""
        return entropy < self.threshold or entropy < self.ratio * largest


@dataclass(frozen=True)
class Sliding:
    """A token joins if it is surer than a distribution of this confidence is."""

    vocab_size: int
    confidence: float = 0.7

    def joins(self, entropy: float, largest: float) -> bool:
        """entropy < `confidence_entropy`."""
        return entropy < confidence_entropy(self.confidence, self.vocab_size)


@dataclass(frozen=True)
class SmallGroup:
    """Only tokens surer than this confidence form groups, among themselves; all others stay alone."""

    vocab_size: int
    confidence: float = 0.95

    def joins(self, entropy: float, largest: float) -> bool:
        """All of the group, this token included, are below `confidence_entropy`."""
        return max(entropy, largest) < confidence_entropy(self.confidence, self.vocab_size)


def confidence_entropy(confidence: float, vocab_size: int) -> float:
    """Nats of a distribution with one token at `confidence` and the rest alike.

    Raises: ValueError for a confidence that is not between 0 and 1, or fewer than two tokens.
    """
    if not 0 < confidence < 1 or vocab_size < 2:
        raise ValueError(
            f"confidence={confidence} must lie between 0 and 1, vocab_size={vocab_size} be 2 or more."
        )
    p, rest = confidence, 1 - confidence
    return -(p * math.log(p) + rest * math.log(rest / (vocab_size - 1)))


def segment(entropies: Sequence[float | int], max_steps: int = 4, rule: JoinRule = Decreasing()) -> list[int]:
    """Sizes of the groups, at most `max_steps` each; they sum to the number of tokens.

    Raises: ValueError for max_steps below 1, or an entropy that is NaN, naming the token.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps} must be 1 or more.")
    sizes: list[int] = []
    count, largest = 0, -1.0
    for number, entropy in enumerate(map(float, entropies)):
        if math.isnan(entropy):
            raise ValueError(f"the entropy of token {number} is NaN; check the model that gave it.")
        if count < max_steps and rule.joins(entropy, largest):
            count, largest = count + 1, max(largest, entropy)
        else:
            if count:
                sizes.append(count)
            count, largest = 1, entropy
    return [*sizes, count] if count else sizes


@torch.no_grad()
def response_entropies(
    model: Decoder, examples: Sequence[TokenExample], window: int | None = None
) -> list[Float[Tensor, " response"]]:
    """Of each example the entropy, nats, of what the model expected in the place of every response token.

    window: positions that attention sees, for long texts: global context is not needed for this.
    Raises: ValueError for an empty prompt, naming the example, or a window below 1.
    """
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be 1 or more positions.")
    check_prompts(examples)
    packed = PackedText.of(examples)
    hook = WithinExamples(packed.rows, window)
    logits = model(packed.ids, packed.rows.pos, hooks=(hook,), want=Want(logits="all")).logits
    found = []
    for (row, start), example in zip(packed.place, examples, strict=True):
        first, last = start + example.prompt_length - 1, start + len(example) - 1
        log_p = logits[row, first:last].float().log_softmax(-1)
        found.append(-(log_p.exp() * log_p).sum(-1))
    return found


def check_prompts(examples: Sequence[TokenExample]) -> None:
    """Raises: ValueError for an empty prompt, naming the example."""
    for number, example in enumerate(examples):
        if example.prompt_length < 1:
            raise ValueError(
                f"example {number} has an empty prompt; the first group needs a state to go on from."
            )


def size_histogram(groups: Iterable[Sequence[int]]) -> dict[int, float]:
    """The share of groups of each size, to be looked at before training: thresholds depend on the base."""
    counts = Counter(size for sizes in groups for size in sizes)
    total = sum(counts.values())
    return {size: counts[size] / total for size in sorted(counts)}
