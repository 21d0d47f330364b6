"""Examples of three kinds in equal numbers, as tokens: JSON records, Python classes, pieces of prose."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.data.seeded import torch_generator
from shoestring.data.structured_text import JsonRecords, PythonClasses
from shoestring.data.text import Encoder

PROSE_PROMPT, PROSE_RESPONSE = 32, 96
"""Tokens of a piece of prose that are shown, and that follow."""


@dataclass(frozen=True)
class TokenExample:
    """A prompt and its response in one row of ids."""

    ids: Int[Tensor, " tokens"]
    prompt_length: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def response_length(self) -> int:
        """Tokens after the prompt."""
        return len(self.ids) - self.prompt_length


@dataclass(frozen=True)
class MixedExamples:
    """The examples of a step, `of_each` of every kind; a function of seed and step.

    end: token that ends the structured ones; prose is cut out of a longer text and goes on.
    Raises: ValueError for a text shorter than one piece, or counts below 1.
    """

    encoder: Encoder
    prose: Int[Tensor, " tokens"]
    end: int
    of_each: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        if self.of_each < 1 or self.seed < 0:
            raise ValueError(f"of_each={self.of_each} must be 1 or more, and seed={self.seed} 0 or more.")
        if len(self.prose) < PROSE_PROMPT + PROSE_RESPONSE:
            raise ValueError(
                f"prose has {len(self.prose)} tokens; one piece takes {PROSE_PROMPT + PROSE_RESPONSE}."
            )

    def __call__(self, step: int) -> list[TokenExample]:
        """Alternating kinds, so that the first ones are a mix too."""
        found = []
        for number in range(step * self.of_each, (step + 1) * self.of_each):
            found += [self.record(number), self.python(number), self.piece(number)]
        return found

    def record(self, number: int) -> TokenExample:
        """JSON record `number`."""
        one = JsonRecords(self.seed)(number)
        return self.tokens(one.prompt, one.response)

    def python(self, number: int) -> TokenExample:
        """Python class `number`."""
        one = PythonClasses(self.seed)(number)
        return self.tokens(one.prompt, one.response)

    def piece(self, number: int) -> TokenExample:
        """A piece of prose from a random place."""
        length = PROSE_PROMPT + PROSE_RESPONSE
        generator = torch_generator(self.seed, 2, number)
        start = int(torch.randint(len(self.prose) - length + 1, (), generator=generator))
        return TokenExample(self.prose[start : start + length], PROSE_PROMPT)

    def tokens(self, prompt: str, response: str) -> TokenExample:
        """Prompt, response and the end token."""
        first, rest = self.encoder.encode(prompt), self.encoder.encode(response)
        return TokenExample(torch.tensor([*first, *rest, self.end]), len(first))
