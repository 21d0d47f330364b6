"""The last tokens that were let in, first in, first out: keys, values, where each stood and its number.

A state of tensors, batch first (see `layers.state`): "keys" and "values" (batch, slots, dim), "positions" and
"ranks" (batch, slots), rank −1 where a slot is empty. A window that reaches back w tokens needs w + 1 slots:
the current token is one of them.

Source: Ren et al. 2023, "Sparse Modular Activation for Efficient Sequence Modeling", section 3.4 (the memory
of activated tokens at inference).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoestring.layers.state import State


def empty_window(
    batch: int, slots: int, d_key: int, d_value: int, *, device: torch.device | str | None, dtype: torch.dtype
) -> State:
    """No token yet."""
    numbers = torch.zeros(batch, slots, dtype=torch.int64, device=device)
    return {
        "keys": torch.zeros(batch, slots, d_key, device=device, dtype=dtype),
        "values": torch.zeros(batch, slots, d_value, device=device, dtype=dtype),
        "positions": numbers,
        "ranks": numbers - 1,
    }


def next_rank(window: State) -> Int[Tensor, " batch"]:
    """The number of the next token of each sample: how many were let in so far."""
    return window["ranks"].amax(1) + 1


def push(
    window: State,
    key: Float[Tensor, "batch d_key"],
    value: Float[Tensor, "batch d_value"],
    position: Int[Tensor, " batch"],
) -> State:
    """With one more token in each sample, in the place of the oldest."""
    fresh = {"keys": key, "values": value, "positions": position, "ranks": next_rank(window)}
    oldest = window["ranks"].argmin(1)
    place = torch.arange(len(oldest), device=oldest.device), oldest
    return {name: kept.index_put(place, fresh[name].to(kept.dtype)) for name, kept in window.items()}


def in_order(window: State) -> State:
    """Oldest first, empty slots before all."""
    return _picked(window, window["ranks"].argsort(1))


def with_sequence(
    window: State,
    keys: Float[Tensor, "batch n d_key"],
    values: Float[Tensor, "batch n d_value"],
    positions: Int[Tensor, "batch n"],
    counts: Int[Tensor, " batch"],
) -> State:
    """All that is kept, in order, and behind it a sequence of which the first counts[i] tokens are real."""
    number = torch.arange(keys.shape[1], device=keys.device)
    real = number < counts[:, None]
    ranks = torch.where(real, next_rank(window)[:, None] + number, -1)
    fresh = {"keys": keys, "values": values, "positions": positions, "ranks": ranks}
    kept = in_order(window)
    return {name: torch.cat([kept[name].to(fresh[name].dtype), fresh[name]], 1) for name in fresh}


def last(window: State, slots: int) -> State:
    """The `slots` youngest tokens."""
    return _picked(window, window["ranks"].topk(slots, 1).indices)


def _picked(window: State, slots: Int[Tensor, "batch slots"]) -> State:
    samples = torch.arange(len(slots), device=slots.device).unsqueeze(1)
    return {name: tensor[samples, slots] for name, tensor in window.items()}
