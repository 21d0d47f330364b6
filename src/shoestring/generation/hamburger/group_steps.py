"""The steps of a decode by groups: each gives all tokens of one group.

Source: Liu and Zhang 2025, "HAMburger: Accelerating LLM Inference via Token Smashing", section 3.4. The
published code is greedy; here every token of a group is drawn from its own logits. Its path for
transformers puts the first group a position too far; here a group stands where its last token would.
"""

from collections.abc import Collection

import torch

from shoestring.generation.decode_steps import DecodeSteps
from shoestring.generation.hamburger.group_runner import GroupRunner
from shoestring.generation.sampling import Sampling


class GroupSteps(DecodeSteps):
    """`DecodeSteps` that give several tokens. groups: the sizes so far; the last one is not in the cache
    yet."""

    runner: GroupRunner

    def __init__(
        self,
        runner: GroupRunner,
        prompt: list[int],
        sampling: Sampling,
        generator: torch.Generator,
        max_new_tokens: int,
        prefill_chunk: int,
    ) -> None:
        super().__init__(runner, prompt, sampling, generator, max_new_tokens, prefill_chunk)
        self.groups: list[int] = []
        self._group: list[int] = []
        self._likeliest = sampling.greedy and sampling.repetition_penalty == 1

    @torch.inference_mode()
    def step(self, ends: Collection[int]) -> list[int]:
        """The next group; it ends with one of `ends`, or where no more tokens are wanted."""
        most = min(self.runner.hamburger.options.max_steps, self.limit - self.count)
        if self._logits is None:
            self.passes += 1
            if self._likeliest:
                self._group = self.runner.greedy_group(self._group, most, ends)
                self.extend(self._group)
            else:
                self._logits = self.runner.feed_group(self._group)
        if self._logits is not None:
            logits, self._logits = self._logits, None
            self._group = self.runner.group_from(logits, most, ends, self.choose)
        self.groups.append(len(self._group))
        return list(self._group)

    def keep(self, count: int) -> None:
        """Forget the tokens of the last group from the `count`-th on: it is not in the cache yet."""
        self.count -= len(self._group) - count
        self._group = self._group[:count]
        self.groups[-1] = count
