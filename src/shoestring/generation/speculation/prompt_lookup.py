"""Draft by looking the last few tokens up in the text so far: what followed them last time.

Source: Saxena 2023, "Prompt Lookup Decoding"; Yang et al. 2023, "Inference with Reference: Lossless
Acceleration of Large Language Models", section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from shoestring.generation.speculation.draft_length import LengthRule, MeasuredLength
from shoestring.generation.speculation.draft_tree import DraftTree
from shoestring.generation.speculation.target import Target


@dataclass(frozen=True)
class PromptLookup:
    """Draft up to `tokens` tokens from the latest place where the last `longest` … `shortest` tokens stood.

    length: what decides how much of a guess is verified.

    Raises: ValueError for lengths below 1 or in the wrong order.
    """

    tokens: int = 7
    longest: int = 4
    shortest: int = 1
    length: LengthRule | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1 or not 1 <= self.shortest <= self.longest:
            raise ValueError(
                f"tokens={self.tokens}, shortest={self.shortest}, longest={self.longest}: all must be 1 or "
                "more, and shortest at most longest."
            )

    def length_rule(self) -> LengthRule:
        """`length`, or one that goes by measured time."""
        return (self.length or MeasuredLength(first_odds=0.5)).fresh()

    def draft(self, generator: torch.Generator, temperature: float) -> "LookupDraft":
        """A draft with an empty index."""
        return LookupDraft(self)


@dataclass
class LookupDraft:
    """The index of one text: where the token stands that followed each short run of tokens last time."""

    options: PromptLookup
    free: bool = True
    text: list[int] = field(default_factory=list)
    _after: dict[tuple[int, ...], int] = field(default_factory=dict)

    def begin(self, target: Target | None, text: Sequence[int]) -> None:
        """Index the text so far."""
        self.add(text)

    def add(self, tokens: Sequence[int]) -> None:
        """Go on with the text."""
        for token in tokens:
            end = len(self.text)
            for n in range(self.options.shortest, min(self.options.longest, end) + 1):
                self._after[tuple(self.text[end - n :])] = end
            self.text.append(token)

    def propose(self, root: int, most: int) -> DraftTree:
        """What followed the longest run that is known; of its length is the kind of the draft."""
        for n in range(min(self.options.longest, len(self.text)), self.options.shortest - 1, -1):
            start = self._after.get(tuple(self.text[-n:]))
            if start is not None:
                count = min(most, self.options.tokens)
                return DraftTree.chain(root, self._going_on(start, count), kind=n)
        return DraftTree.chain(root, ())

    def settle(self, tree: DraftTree, path: Sequence[int], tokens: Sequence[int]) -> None:
        """Index what the text goes on by."""
        self.add(tokens)

    def _going_on(self, start: int, count: int) -> list[int]:
        """`count` tokens from `start` on; past the end of the text it repeats what it has just said."""
        found: list[int] = []
        for place in range(start, start + count):
            inside = place < len(self.text)
            found.append(self.text[place] if inside else found[place - len(self.text)])
        return found


def naive_lookup(text: Sequence[int], longest: int, shortest: int, count: int) -> list[int]:
    """What `LookupDraft` proposes, by searching the text backwards for every length."""
    for n in range(min(longest, len(text)), shortest - 1, -1):
        for start in range(len(text) - 1, n - 1, -1):
            if list(text[start - n : start]) == list(text[-n:]):
                period = len(text) - start
                return [text[start + i % period] for i in range(count)]
    return []
