"""Batches of a data set in a new order every epoch, as a function of the step."""

from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.data.seeded import check_seed, torch_generator


class ShuffledBatches:
    """Called with a step, gives the rows of every tensor that come then; an epoch sees each row once.

    Batches run on over the end of an epoch, so that all have `batch_size` rows.
    Raises: ValueError for no tensors, tensors of different lengths or of none, or as `check_seed`.
    """

    def __init__(self, *tensors: Tensor, batch_size: int, seed: int = 0) -> None:
        check_seed(seed, batch_size)
        lengths = {len(tensor) for tensor in tensors}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                f"tensors must have one length, 1 or more; they have {sorted(lengths) or 'none'}"
            )
        self.tensors, self.batch_size, self.seed = tensors, batch_size, seed

    def __call__(self, step: int) -> tuple[Tensor, ...]:
        rows = shuffled_rows(step, len(self.tensors[0]), self.batch_size, self.seed)
        return tuple(tensor[rows] for tensor in self.tensors)


def shuffled_rows(step: int, size: int, batch_size: int, seed: int) -> Int[Tensor, " batch"]:
    """Which rows of `size` make the batch of a step."""
    first, last = step * batch_size, (step + 1) * batch_size - 1
    epochs = range(first // size, last // size + 1)
    rows = torch.cat([_order(seed, epoch, size) for epoch in epochs])
    start = first - epochs.start * size
    return rows[start : start + batch_size]


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> Int[Tensor, " size"]:
    return torch.randperm(size, generator=torch_generator(seed, epoch))
