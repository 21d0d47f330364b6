"""The steps of a decode: each gives the next token of one output."""

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.generation.runner import Runner
from shoestring.generation.sampling import Sampling


class DecodeSteps:
    """One token a step: the sequence so far, and how much room there is for more.

    limit: tokens that the output may have.
    """

    passes = 0
    """Forward passes after the prompt's."""

    def __init__(
        self,
        runner: Runner,
        prompt: list[int],
        sampling: Sampling,
        generator: torch.Generator,
        max_new_tokens: int,
        prefill_chunk: int,
    ) -> None:
        room = max_new_tokens if runner.context is None else runner.context - len(prompt)
        self.limit, self.fits = min(max_new_tokens, room), max_new_tokens <= room
        self.runner, self.sampling, self.generator = runner, sampling, generator
        self.chunk, self.prompt_length = prefill_chunk, len(prompt)
        # One buffer for the whole sequence: the repetition penalty looks at all of it, each step at its end.
        self.ids = torch.empty(1, len(prompt) + self.limit, dtype=torch.long, device=runner.device)
        self.ids[0, : len(prompt)] = torch.tensor(prompt)
        self.count = 0
        """Tokens of the output so far."""
        self._logits: Tensor | None = None

    @torch.inference_mode()
    def prefill(self) -> None:
        """Run the prompt in chunks."""
        for start in range(0, self.prompt_length, self.chunk):
            stop = min(start + self.chunk, self.prompt_length)
            self._logits = self.runner.feed(self.ids[:, start:stop])
        self.runner.prompt_is_read()

    def go_on(self, logits: Float[Tensor, "1 vocab"]) -> None:
        """Instead of `prefill`, where the runner has read the prompt: the logits after it."""
        self._logits = logits

    @torch.inference_mode()
    def step(self, ends: Collection[int]) -> list[int]:
        """The next tokens, at least one; none behind one of `ends`."""
        if self._logits is None:
            end = self.prompt_length + self.count
            self._logits = self.runner.feed(self.ids[:, end - 1 : end])
            self.passes += 1
        token = self.choose(self._logits)
        self._logits = None
        return [token]

    def keep(self, count: int) -> None:
        """Say that of the tokens of the last step only the first `count`, at least one, are wanted."""

    def choose(self, logits: Tensor) -> int:
        """The next token of the output, appended."""
        end = self.prompt_length + self.count
        token = int(self.sampling.choose(logits, self.ids[:, :end], self.generator))
        self.append(token)
        return token

    def append(self, token: int) -> None:
        """Go on with the output."""
        self.ids[0, self.prompt_length + self.count] = token
        self.count += 1

    def extend(self, tokens: list[int]) -> None:
        """Go on with the output by several tokens."""
        start = self.prompt_length + self.count
        self.ids[0, start : start + len(tokens)] = torch.tensor(tokens, device=self.ids.device)
        self.count += len(tokens)
