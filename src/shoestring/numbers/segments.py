"""Renumber n-grams exactly and count by key: sorts of one integer column, no table over the vocabulary.

Source: the dictionary of TensorBLEU (2025), section 3, in an exact form: instead of comparing rows of tokens,
the id of an n-gram is the rank of the pair (id of its first n − 1 tokens, last token).
"""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

LARGEST_KEY = 2**63 - 1
_THREADS_PAY_FROM = 1 << 20


def _sort(keys: Tensor) -> Any:
    """`keys.sort()`, on one thread below a million keys.

    Torch's parallel sort waits for its slowest thread many times: a core that is busy with something else
    makes a sort of two milliseconds last four hundred.
    """
    threads = torch.get_num_threads()
    if keys.device.type != "cpu" or len(keys) >= _THREADS_PAY_FROM or threads == 1:
        return keys.sort()
    torch.set_num_threads(1)
    try:
        return keys.sort()
    finally:
        torch.set_num_threads(threads)


def renumber(keys: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], int]:
    """Ranks of the keys among the distinct ones, and how many of these there are."""
    if keys.numel() == 0:
        return keys.long(), 0
    ordered, order = _sort(keys)
    fresh = torch.ones_like(ordered)
    fresh[1:] = (ordered[1:] != ordered[:-1]).long()
    ranks = torch.empty_like(ordered)
    ranks[order] = fresh.cumsum(0) - 1
    return ranks, int(ranks[order[-1]]) + 1


def naive_renumber(keys: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], int]:
    """The same by a sorted list of the distinct keys."""
    distinct = sorted(set(keys.tolist()))
    place = {key: rank for rank, key in enumerate(distinct)}
    return torch.tensor([place[key] for key in keys.tolist()], dtype=torch.int64), len(distinct)


def extend_ngrams(
    ids: Int[Tensor, " n"], distinct: int, next_token: Int[Tensor, " n"]
) -> tuple[Int[Tensor, " n"], int]:
    """Ids of (n + 1)-grams from those of n-grams (ranks below `distinct`) and the tokens that follow them.

    Raises: ValueError if the pairs could not be told apart in 63 bits.
    """
    if ids.numel() == 0:
        return ids, 0
    base = int(next_token.max()) + 1
    if distinct * base > LARGEST_KEY:
        raise ValueError(f"{distinct} n-grams times tokens up to {base - 1} do not fit 63 bits.")
    return renumber(ids * base + next_token)


def run_lengths(keys: Int[Tensor, " n"]) -> tuple[Int[Tensor, " distinct"], Int[Tensor, " distinct"]]:
    """The distinct keys in ascending order, and how often each occurs."""
    ordered = _sort(keys).values
    return torch.unique_consecutive(ordered, return_counts=True)


def naive_run_lengths(
    keys: Int[Tensor, " n"],
) -> tuple[Int[Tensor, " distinct"], Int[Tensor, " distinct"]]:
    """The same by counting in a dictionary."""
    counts: dict[int, int] = {}
    for key in keys.tolist():
        counts[key] = counts.get(key, 0) + 1
    ordered = sorted(counts)
    return torch.tensor(ordered, dtype=torch.int64), torch.tensor(
        [counts[key] for key in ordered], dtype=torch.int64
    )
