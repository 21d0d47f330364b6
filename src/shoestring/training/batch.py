"""A batch is a tensor, or tensors in tuples, lists and mappings; samples lie along their first axis."""

import operator
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


def map_tensors(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nesting with every tensor changed; what is no tensor stays."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [map_tensors(value, change) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on `device`."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def batch_size(batch: Any) -> int:
    """How many samples a batch has. Raises: ValueError if it has no tensor or its tensors disagree."""
    sizes: set[int] = set()

    def see(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0:
            raise ValueError("a batch that is cut in parts has a tensor without axes; give it a first axis")
        sizes.add(len(tensor))
        return tensor

    map_tensors(batch, see)
    if len(sizes) != 1:
        raise ValueError(
            f"a batch that is cut in parts needs tensors of one length; these have {sorted(sizes) or 'none'}"
        )
    return sizes.pop()


def split_batch(batch: Any, parts: int) -> Iterator[tuple[Any, float]]:
    """The batch cut in `parts` of nearly equal size along its first axis, each with its share of the samples.

    Raises: ValueError if there are fewer samples than parts, or as `batch_size`. One part is the batch as it
    is, of whatever form.
    """
    if parts == 1:
        yield batch, 1.0
        return
    size = batch_size(batch)
    if size < parts:
        raise ValueError(f"a batch of {size} samples cannot be cut in {parts} parts; give larger batches")
    bounds = [size * part // parts for part in range(parts + 1)]
    for start, stop in pairwise(bounds):
        yield map_tensors(batch, operator.itemgetter(slice(start, stop))), (stop - start) / size
