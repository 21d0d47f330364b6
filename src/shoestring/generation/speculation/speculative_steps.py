"""The steps of a decode with a draft: each verifies what was drafted and gives all tokens that stand."""

import time
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from shoestring.generation.decode_steps import DecodeSteps
from shoestring.generation.speculation.acceptance import follow, follow_drawn
from shoestring.generation.speculation.draft import Speculation
from shoestring.generation.speculation.draft_tree import DraftTree
from shoestring.generation.speculation.target import Target


class SpeculativeSteps(DecodeSteps):
    """`DecodeSteps` whose output is the same and comes several tokens a step.

    Logits of several tokens at once may differ from those of one at a time in the last bits, as sums run in
    another order: a tie between two tokens may then fall the other way. clock: seconds, for what is measured.

    Raises: TypeError as `Target`.
    """

    def __init__(
        self,
        speculation: Speculation,
        *arguments: Any,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(*arguments)
        self.target = Target(self.runner)
        self.length, self._clock = speculation.length_rule(), clock
        self.draft = speculation.draft(self.generator, self.sampling.temperature)
        most, compiled = speculation.tokens, self.target.most_tokens
        self.tokens = most if compiled is None else min(most, compiled - 1)
        self._pending: tuple[DraftTree, list[int], list[int]] | None = None

    @torch.inference_mode()
    def step(self, ends: Collection[int]) -> list[int]:
        """The next tokens, at least one; none behind one of `ends`."""
        self._settle()
        if self._logits is not None:
            tokens = super().step(ends)
            self.draft.begin(self.target, self.ids[0, : self.prompt_length + 1].tolist())
            return tokens
        start = self._clock()
        root = int(self.ids[0, self.prompt_length + self.count - 1])
        # The last token of a path is the target's own: a draft may be one shorter than the room.
        most = min(self.tokens, self.limit - self.count - 1)
        guess, tree = self._drafted(root, most)
        logits = self.target.verify(tree)
        self.passes += 1
        path, tokens = self._accepted(tree, logits, ends)
        self.length.took(len(tree) - 1, self._clock() - start)
        self._learn(guess, path, tokens)
        self._pending = tree, path, tokens
        return tokens

    @torch.inference_mode()
    def keep(self, count: int) -> None:
        """Forget the tokens of the last step from the `count`-th on."""
        if self._pending is not None:
            tree, path, tokens = self._pending
            self.count -= len(tokens) - count
            self._pending = tree, path[:count], tokens[:count]
            self._settle()

    def _drafted(self, root: int, most: int) -> tuple[DraftTree, DraftTree]:
        """What the draft guesses, and as much of it as is worth verifying."""
        if self.draft.free:
            guess = self.draft.propose(root, most)
            return guess, guess.cut(self.length.choose(guess.kind, min(most, len(guess) - 1)))
        chosen = self.length.choose(0, most)
        guess = self.draft.propose(root, chosen) if chosen else DraftTree.chain(root, ())
        return guess, guess

    def _accepted(
        self, tree: DraftTree, logits: Tensor, ends: Collection[int]
    ) -> tuple[list[int], list[int]]:
        if tree.odds is None or self.sampling.greedy:
            return follow(tree, lambda node: self.choose(logits[node : node + 1]), ends)
        written = self.count

        def odds(node: int) -> Tensor:
            # A chain: the tokens of the path so far are those above the node.
            self.count = written
            for token in tree.tokens[1 : node + 1]:
                self.append(token)
            end = self.prompt_length + self.count
            return self.sampling.scores(logits[node : node + 1], self.ids[:, :end]).float().softmax(-1)[0]

        path, tokens = follow_drawn(tree, odds, self.generator, ends)
        self.count = written
        for token in tokens:
            self.append(token)
        return path, tokens

    def _learn(self, guess: DraftTree, path: list[int], tokens: list[int]) -> None:
        """Compare the text with the guess, the part that was not verified included."""
        right, node = 0, 0
        for token in tokens:
            child = guess.child(node, token)
            if child is None:
                break
            node, right = child, right + 1
        drafted = max(guess.depths())
        self.length.record(guess.kind, drafted, right, right < min(drafted, len(tokens)))

    def _settle(self) -> None:
        if self._pending is not None:
            tree, path, tokens = self._pending
            self._pending = None
            self.target.keep(path)
            self.draft.settle(tree, path, tokens)
