"""What speculation asks of a draft, whatever it guesses with."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from shoestring.generation.speculation.draft_length import LengthRule
from shoestring.generation.speculation.draft_tree import DraftTree
from shoestring.generation.speculation.target import Target


@runtime_checkable
class Draft(Protocol):
    """Guesses for one text."""

    free: bool
    """Whether a guess costs next to nothing, so that one may be made and not be used."""

    def begin(self, target: Target, text: Sequence[int]) -> None:
        """The text so far: the prompt, which the target has read, and the first token after it."""
        ...

    def propose(self, root: int, most: int) -> DraftTree:
        """Tokens after the text, whose last one is `root`: at most `most` deep, perhaps none."""
        ...

    def settle(self, tree: DraftTree, path: Sequence[int], tokens: Sequence[int]) -> None:
        """Of `tree`, perhaps cut, `path` was accepted; the text goes on by `tokens`."""
        ...


@runtime_checkable
class Speculation(Protocol):
    """A way to draft, as `generate` takes it."""

    @property
    def tokens(self) -> int:
        """The longest draft."""
        ...

    def length_rule(self) -> LengthRule:
        """What decides how much is drafted; a new one for every text."""
        ...

    def draft(self, generator: torch.Generator, temperature: float) -> Draft:
        """A draft for one text."""
        ...
