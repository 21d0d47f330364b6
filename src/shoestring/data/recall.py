"""Recall tasks: keys and values are shown, later a key is asked and its value is the answer.

What a model that only sees near positions cannot do, and one with too small a state does badly. Each task is
called with the number of a step and gives that step's batch, a function of its seed and the step alone.

Source: Graves et al. 2014, "Neural Turing Machines", section 4.3 (associative recall); Arora et al. 2023,
"Zoology: Measuring and Improving Recall in Efficient Language Models", section 3.2 (many queries).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.data.seeded import IGNORED, check_seed, distinct, torch_generator

Tokens = Int[Tensor, "batch length"]


@dataclass(frozen=True)
class ScatteredRecall:
    """One token names a key and its value; they lie scattered among fillers, and so do the questions.

    Every key is shown once, at a random place of the first half; `queries` tokens at random places of the
    second half each ask for a random key. The target is the value, 0 .. values - 1, at the place that asks
    and IGNORED elsewhere. Token ids: fillers, then pairs (key · values + value), then questions.

    Raises: ValueError if the pairs or the questions do not fit their half, or a count is below 1.
    """

    length: int = 128
    keys: int = 4
    values: int = 4
    queries: int = 32
    fillers: int = 16
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed, self.batch_size)
        _check_counts(self, "keys", "values", "queries", "fillers")
        half = self.length // 2
        if self.keys > half or self.queries > self.length - half:
            raise ValueError(
                f"length={self.length} has halves of {half} and {self.length - half} places, too few for "
                f"keys={self.keys} and queries={self.queries}"
            )

    @property
    def vocabulary(self) -> int:
        """How many token ids there are."""
        return self.fillers + self.keys * self.values + self.keys

    def __call__(self, step: int) -> tuple[Tokens, Tokens]:
        """Tokens and targets of a step."""
        generator = torch_generator(self.seed, step)
        rows, half = self.batch_size, self.length // 2
        tokens = torch.randint(self.fillers, (rows, self.length), generator=generator)
        targets = torch.full_like(tokens, IGNORED)
        value = torch.randint(self.values, (rows, self.keys), generator=generator)
        pairs = self.fillers + torch.arange(self.keys) * self.values + value
        tokens.scatter_(1, distinct(rows, self.keys, half, generator), pairs)
        asked = torch.randint(self.keys, (rows, self.queries), generator=generator)
        places = half + distinct(rows, self.queries, self.length - half, generator)
        tokens.scatter_(1, places, self.fillers + self.keys * self.values + asked)
        targets.scatter_(1, places, value.gather(1, asked))
        return tokens, targets


@dataclass(frozen=True)
class PairRecall:
    """A position holds a key and a value, whose embeddings are summed; at the end keys come alone.

    `pairs` different keys stand at random places of the first half, each with a random value; in the last
    `pairs` positions each of them is asked once, in random order. Ids: key 1 .. keys and value 1 .. values,
    0 where there is none. The target is the value, 0 .. values - 1, where a key is asked, else IGNORED.

    Raises: ValueError if there are fewer keys than pairs or they do not fit a half, or a count is below 1.
    """

    length: int = 256
    pairs: int = 32
    keys: int = 64
    values: int = 16
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed, self.batch_size)
        _check_counts(self, "pairs", "keys", "values")
        if self.pairs > self.keys:
            raise ValueError(f"pairs={self.pairs} need as many different keys; keys={self.keys}")
        if self.pairs > self.length // 2:
            raise ValueError(f"pairs={self.pairs} do not fit half of length={self.length}")

    def __call__(self, step: int) -> tuple[Tokens, Tokens, Tokens]:
        """Keys, values and targets of a step."""
        generator = torch_generator(self.seed, step)
        rows, count = self.batch_size, self.pairs
        keys = torch.zeros(rows, self.length, dtype=torch.int64)
        values, targets = keys.clone(), torch.full_like(keys, IGNORED)
        key = distinct(rows, count, self.keys, generator)
        value = torch.randint(self.values, (rows, count), generator=generator)
        places = distinct(rows, count, self.length // 2, generator)
        keys.scatter_(1, places, key + 1)
        values.scatter_(1, places, value + 1)
        order = distinct(rows, count, count, generator)
        keys[:, -count:] = key.gather(1, order) + 1
        targets[:, -count:] = value.gather(1, order)
        return keys, values, targets


@dataclass(frozen=True)
class AssociativeRecall:
    """Keys and values alternate, key before value; afterwards some keys come again, each to be answered.

    First `pairs` different keys with random values, then fillers, among which `queries` of the keys, all
    different, stand at random places. Token ids: 0 fills, 1 .. keys are keys, then values. The target is the
    value, 0 .. values - 1, at a key that comes again, IGNORED elsewhere. With queries=1 and
    length = 2 · pairs + 1 it is the classical form: one question, at once.

    Raises: ValueError if there are more queries than pairs, fewer keys than pairs, too small a length, or a
    count below 1.
    """

    length: int = 64
    pairs: int = 8
    queries: int = 8
    keys: int = 32
    values: int = 32
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed, self.batch_size)
        _check_counts(self, "pairs", "queries", "keys", "values")
        if not self.queries <= self.pairs <= self.keys:
            raise ValueError(
                f"queries={self.queries}, pairs={self.pairs}, keys={self.keys}: each must be at most the next"
            )
        if self.length < 2 * self.pairs + self.queries:
            raise ValueError(
                f"length={self.length} is too short for pairs={self.pairs} and queries={self.queries}; use "
                f"{2 * self.pairs + self.queries} or more"
            )

    @property
    def vocabulary(self) -> int:
        """How many token ids there are."""
        return 1 + self.keys + self.values

    def __call__(self, step: int) -> tuple[Tokens, Tokens]:
        """Tokens and targets of a step."""
        generator = torch_generator(self.seed, step)
        rows, shown = self.batch_size, 2 * self.pairs
        tokens = torch.zeros(rows, self.length, dtype=torch.int64)
        targets = torch.full_like(tokens, IGNORED)
        key = distinct(rows, self.pairs, self.keys, generator)
        value = torch.randint(self.values, (rows, self.pairs), generator=generator)
        tokens[:, 0:shown:2] = 1 + key
        tokens[:, 1:shown:2] = 1 + self.keys + value
        asked = distinct(rows, self.queries, self.pairs, generator)
        places = shown + distinct(rows, self.queries, self.length - shown, generator)
        tokens.scatter_(1, places, 1 + key.gather(1, asked))
        targets.scatter_(1, places, value.gather(1, asked))
        return tokens, targets


def naive_scattered_recall(tokens: Tokens, task: ScatteredRecall) -> Tokens:
    """The targets by reading from left to right with a table."""
    targets = torch.full_like(tokens, IGNORED)
    first_question = task.fillers + task.keys * task.values
    for row, line in enumerate(tokens.tolist()):
        table: dict[int, int] = {}
        for place, token in enumerate(line):
            if token >= first_question:
                targets[row, place] = table[token - first_question]
            elif token >= task.fillers:
                key, value = divmod(token - task.fillers, task.values)
                table[key] = value
    return targets


def naive_pair_recall(keys: Tokens, values: Tokens) -> Tokens:
    """The targets by reading from left to right with a table."""
    targets = torch.full_like(keys, IGNORED)
    for row, line in enumerate(zip(keys.tolist(), values.tolist(), strict=True)):
        table: dict[int, int] = {}
        for place, (key, value) in enumerate(zip(*line, strict=True)):
            if value:
                table[key] = value - 1
            elif key:
                targets[row, place] = table[key]
    return targets


def naive_associative_recall(tokens: Tokens, task: AssociativeRecall) -> Tokens:
    """The targets by reading from left to right with a table."""
    targets = torch.full_like(tokens, IGNORED)
    for row, line in enumerate(tokens.tolist()):
        table: dict[int, int] = {}
        for place, token in enumerate(line):
            if token > task.keys:
                table[line[place - 1]] = token - task.keys - 1
            elif token in table:
                targets[row, place] = table[token]
    return targets


def _check_counts(task: object, *names: str) -> None:
    for name in names:
        if getattr(task, name) < 1:
            raise ValueError(f"{name}={getattr(task, name)} must be 1 or more")
