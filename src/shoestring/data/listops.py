"""ListOps: nested lists of digits under MIN, MAX, MED and SM, whose value is a digit.

A model must follow brackets over hundreds of tokens. MED is the median rounded down, SM the sum modulo 10.

Source: Nangia and Bowman 2018, "ListOps: A Diagnostic Dataset for Latent Tree Learning", section 2; Tay et
al. 2021, "Long Range Arena", section 2.2.1 and its generator (each node an operator with probability 1/4, up
to depth 10, with 2 to 10 arguments; expressions of 500 to 2,000 tokens are kept).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.data.seeded import check_seed

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
CLOSE = "]"
TOKENS = ("<pad>", *map(str, range(10)), *OPERATORS, CLOSE)
"""In the order of their ids; 0 pads."""
VOCABULARY = len(TOKENS)
PAD = 0
CLASSES = 10
_OPERATOR_SHARE = 0.25
_TRIES = 100_000


@dataclass(frozen=True)
class ListOps:
    """Expressions and their values; sample i of a seed is always the same.

    min_length, max_length: tokens of an expression, brackets counted, both excluded as in the original.
    max_depth: a list within lists. Short expressions, e.g. min_length=4, max_length=64, max_depth=4, are a
    quick first task.

    Raises: ValueError for bounds that leave no length, a depth below 2 or fewer than 2 arguments.
    """

    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    max_arguments: int = 10
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed, self.batch_size)
        if not 0 <= self.min_length < self.max_length - 1:
            raise ValueError(
                f"min_length={self.min_length} and max_length={self.max_length} leave no length between them"
            )
        if self.max_depth < 2:
            raise ValueError(f"max_depth={self.max_depth} must be 2 or more: at 1 there are digits only")
        if self.max_arguments < 2:
            raise ValueError(f"max_arguments={self.max_arguments} must be 2 or more")

    def sample(self, index: int) -> tuple[list[int], int]:
        """Token ids and value of one expression.

        Raises: ValueError if none of the wanted length turns up, saying which bounds to widen.
        """
        words = np.random.SeedSequence((self.seed, index)).generate_state(4)
        draw = random.Random(int.from_bytes(words.tobytes(), "little"))
        for _ in range(_TRIES):
            tokens: list[int] = []
            value = self._grow(draw, 1, tokens)
            if self.min_length < len(tokens) < self.max_length:
                return tokens, value
        raise ValueError(
            f"none of {_TRIES} expressions had between {self.min_length} and {self.max_length} tokens at "
            f"max_depth={self.max_depth}, max_arguments={self.max_arguments}; raise these or lower min_length"
        )

    def __call__(self, step: int) -> tuple[Int[Tensor, "batch length"], Int[Tensor, " batch"]]:
        """Ids, padded at the end to the longest of the batch, and values of a step."""
        first = step * self.batch_size
        samples = [self.sample(index) for index in range(first, first + self.batch_size)]
        longest = max(len(tokens) for tokens, _ in samples)
        ids = torch.full((self.batch_size, longest), PAD)
        for row, (tokens, _) in enumerate(samples):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return ids, torch.tensor([value for _, value in samples])

    def _grow(self, draw: random.Random, depth: int, tokens: list[int]) -> int:
        """Append an expression to `tokens`; its value. Stops early once it is too long to be kept."""
        if depth >= self.max_depth or draw.random() > _OPERATOR_SHARE or len(tokens) >= self.max_length:
            digit = draw.randrange(10)
            tokens.append(1 + digit)
            return digit
        place = len(tokens)
        tokens.append(0)
        values = [self._grow(draw, depth + 1, tokens) for _ in range(draw.randint(2, self.max_arguments))]
        operator = draw.randrange(len(OPERATORS))
        tokens[place] = 11 + operator
        tokens.append(VOCABULARY - 1)
        return apply(OPERATORS[operator], values)


def apply(operator: str, values: Sequence[int]) -> int:
    """The digit that an operator makes of digits. Raises: ValueError for another operator."""
    if operator == "[MIN":
        return min(values)
    if operator == "[MAX":
        return max(values)
    if operator == "[MED":
        ordered = sorted(values)
        middle = len(ordered) // 2
        return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) // 2
    if operator == "[SM":
        return sum(values) % 10
    raise ValueError(f"operator {operator!r} is not known; use {', '.join(OPERATORS)}")


def as_text(ids: Sequence[int]) -> str:
    """The expression as people write it, e.g. `[MAX 2 9 [MIN 4 7 ] 0 ]`; padding left out."""
    return " ".join(TOKENS[i] for i in ids if i != PAD)


def naive_value(text: str) -> int:
    """The value of an expression by reading it from left to right with a stack.

    Raises: ValueError for brackets that do not match.
    """
    lists: list[list[str]] = [[]]
    for word in text.split():
        if word in OPERATORS:
            lists.append([word])
        elif word == CLOSE and len(lists) > 1:
            operator, *values = lists.pop()
            lists[-1].append(str(apply(operator, [int(value) for value in values])))
        elif word != CLOSE:
            lists[-1].append(word)
        else:
            raise ValueError(f"{text!r} closes a list that was not opened")
    if len(lists) != 1 or len(lists[0]) != 1:
        raise ValueError(f"{text!r} is not one expression with matching brackets")
    return int(lists[0][0])
