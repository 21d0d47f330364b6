"""Generators for data that is a function of a seed and a number: the step, the epoch, the sample."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

IGNORED = -100
"""The target of positions that are not asked; `torch.nn.functional.cross_entropy` leaves it out."""


def torch_generator(*numbers: int) -> torch.Generator:
    """A torch generator seeded by whole numbers, none below 0; each tuple gives another stream."""
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)))


def numpy_generator(*numbers: int) -> np.random.Generator:
    """A numpy generator seeded by whole numbers, none below 0; each tuple gives another stream."""
    return np.random.default_rng(np.random.SeedSequence(numbers))


def distinct(rows: int, count: int, below: int, generator: torch.Generator) -> Int[Tensor, "rows count"]:
    """In each row `count` different whole numbers below `below`, in random order."""
    return torch.rand(rows, below, generator=generator).argsort(1)[:, :count]


def check_seed(seed: int, batch_size: int) -> None:
    """Raises: ValueError for a seed below 0 or a batch without samples."""
    if seed < 0:
        raise ValueError(f"seed={seed} must be 0 or more")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be 1 or more")
