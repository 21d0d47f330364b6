"""A HAMburger that drafts for its frozen base: the text is the base's, and only the draft's cache is smaller.

The draft's own groups become slots of its cache. Where some of a group are rejected its slot is made anew
from those that stand: part of a slot cannot be taken back.

Source: Liu and Zhang 2025, "HAMburger: Accelerating LLM Inference via Token Smashing", appendix (HAMburger
as a draft model).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shoestring.generation.hamburger.compiled_group_runner import group_runner
from shoestring.generation.speculation.draft_length import FixedLength, LengthRule
from shoestring.generation.speculation.draft_tree import DraftTree
from shoestring.generation.speculation.target import Target
from shoestring.models.hamburger import Hamburger


@dataclass(frozen=True)
class GroupDraft:
    """Draft with `module`, group by group, chains of up to `tokens`. Give it to `generate` as `speculation`
    with the base: what is generated is what the base alone would generate.

    separate_last: the target's own token after the accepted ones is a slot of its own; else it is merged with
    them where they fit. Raises: ValueError for tokens below 1.
    """

    module: Hamburger
    tokens: int = 4
    separate_last: bool = True
    length: LengthRule = FixedLength()  # noqa: RUF009  (frozen)

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens={self.tokens} must be 1 or more.")

    def length_rule(self) -> LengthRule:
        """`length`, for a new text."""
        return self.length.fresh()

    def draft(self, generator: torch.Generator, temperature: float) -> "GroupDraftRun":
        """A draft with an empty cache."""
        return GroupDraftRun(self)


class GroupDraftRun:
    """The draft of one text. `unread`: tokens that stand and are in no slot yet, the last is the next
    root."""

    free = False

    def __init__(self, options: GroupDraft) -> None:
        self.options = options
        self.runner = group_runner(options.module)
        self.unread: list[list[int]] = []

    @torch.inference_mode()
    def begin(self, target: Target, text: Sequence[int]) -> None:
        """Read the prompt. Raises: ValueError for a target with another vocabulary."""
        own, theirs = self.options.module.cfg.vocab_size, target.runner.vocab_size
        if own != theirs:
            raise ValueError(f"the draft has {own} tokens and the target {theirs}; they must be the same.")
        self.runner.feed(torch.tensor([list(text[:-1])], device=self.runner.device))
        self.runner.prompt_is_read()
        self.unread = [[text[-1]]]

    @torch.inference_mode()
    def propose(self, root: int, most: int) -> DraftTree:
        """The likeliest tokens after the text, until the stop head ends the draft or there are `most`."""
        if most < 1:
            return DraftTree.chain(root, ())
        *before, last = self.unread
        for group in before:
            self.runner.feed_group(group)
        self.unread = []
        most = min(most, self.options.module.options.max_steps)
        return DraftTree.chain(root, self.runner.greedy_group(last, most, ()))

    def settle(self, tree: DraftTree, path: Sequence[int], tokens: Sequence[int]) -> None:
        """What stands is read next time: the accepted tokens as one group, the target's own beside or in
        it."""
        *accepted, last = tokens
        most = self.options.module.options.max_steps
        groups = [group for group in (accepted[i : i + most] for i in range(0, len(accepted), most)) if group]
        merged = bool(groups) and not self.options.separate_last and len(groups[-1]) < most
        groups = [*groups[:-1], [*groups[-1], last]] if merged else [*groups, [last]]
        self.unread = [*self.unread, *groups]
