"""What a recurrent layer carries from one token to the next, and how it is asked for it.

A state is a table of named tensors, batch first, whose size does not depend on how many tokens it has seen.
Layers read and write sequences as (batch, seq, dim).
"""

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

State = Mapping[str, Tensor]


@runtime_checkable
class Recurrent(Protocol):
    """A layer that can read a sequence at once, in pieces, or token by token, with the same outputs."""

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state before the first token."""
        ...

    def prefill(
        self, x: Float[Tensor, "batch seq dim"], state: State
    ) -> tuple[Float[Tensor, "batch seq dim_out"], State]:
        """The outputs of these tokens, which follow those that `state` has seen, and the state after them."""
        ...

    def step(
        self, x: Float[Tensor, "batch dim"], state: State
    ) -> tuple[Float[Tensor, "batch dim_out"], State]:
        """The output of one more token, and the state after it."""
        ...


def state_bytes(state: State) -> int:
    """Bytes that the tensors of a state take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def clone_state(state: State) -> State:
    """A copy that shares no storage."""
    return {name: tensor.clone() for name, tensor in state.items()}


def reorder_state(state: State, samples: Int[Tensor, " batch_out"]) -> State:
    """A state whose sample i is a copy of sample `samples[i]`.

    Raises: IndexError for a sample that is not there.
    """
    return {name: tensor.index_select(0, samples) for name, tensor in state.items()}


def join_states(states: Iterable[State]) -> State:
    """The states of the layers of a network as one: tensor "x" of layer 2 is called "2.x"."""
    return {f"{i}.{name}": tensor for i, state in enumerate(states) for name, tensor in state.items()}


def state_of(state: State, layer: int) -> State:
    """What `join_states` was given for this layer; empty where that had no state."""
    prefix = f"{layer}."
    return {name.removeprefix(prefix): part for name, part in state.items() if name.startswith(prefix)}
