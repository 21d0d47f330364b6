"""What a decoder asks of a KV cache. A token has a position; slots are storage.

Lengths are ragged: per layer, per sample, per head. `evict` frees memory; `view(select=…)` saves traffic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.layers.attention_masks import KVView
from shoestring.layers.state import State


class CacheCannot(ShoestringError, NotImplementedError):
    """A cache has no way to do an operation; the message names it and says why."""

    def __init__(self, operation: str, reason: str) -> None:
        super().__init__(f"this cache cannot {operation}: {reason}")
        self.operation = operation


class HookConflict(ShoestringError, ValueError):
    """Two hooks of one forward pass cannot both have their way; the message names them and the layer."""


@dataclass
class Traffic:
    """Bits that views have read from storage so far, scales included."""

    k_bits: int = 0
    v_bits: int = 0

    def count(self, k_bits: int, v_bits: int) -> None:
        """Add one view."""
        self.k_bits += k_bits
        self.v_bits += v_bits


@runtime_checkable
class KVCache(Protocol):
    """The keys and values of a batch of sequences in every layer; keys are stored already rotated."""

    next_pos: Int[Tensor, " batch"]
    """The logical position that follows each sample's last token, stored or not."""
    traffic: Traffic

    @property
    def exact_tokens(self) -> int | None:
        """How many new tokens a step may read back through a view, where tokens are rounded when older; None:
        any number, as a view gives back every token as it will stay."""
        ...

    @property
    def side(self) -> "SideAccess":
        """Per-layer tables kept in step with the slots: `side[name][layer]`."""
        ...

    def append(
        self, layer: int, k: Tensor, v: Tensor, pos: Tensor, store: Tensor | None = None
    ) -> Int[Tensor, "..."]:
        """Store tokens (those that `store` marks); the slots they got, −1 where none."""
        ...

    def view(self, layer: int, select: Tensor | None = None) -> KVView:
        """Keys, values and positions, all or the selected slots of every head."""
        ...

    def evict(self, layer: int, keep: Tensor) -> None:
        """Free all slots but `keep` (batch, m) or (batch, heads, m); their order stays."""
        ...

    def recompress(self, layer: int, slots: Tensor, tier: int) -> None:
        """Store these slots in the form of a tier. Raises: CacheCannot where there are no tiers."""
        ...

    def mark(self) -> Any:
        """Remember this state for `rollback`."""
        ...

    def rollback(self, mark: Any) -> None:
        """Drop everything appended after `mark`, in all layers."""
        ...

    def compact(self, layer: int | None, order: Tensor) -> None:
        """Of the slots since the last mark keep these, in this order; in one layer or in all (None)."""
        ...

    def length(self, layer: int) -> Int[Tensor, " batch"]:
        """Slots held per sample."""
        ...

    def slot_tokens(self, layer: int) -> Int[Tensor, "batch rows slots"]:
        """How many tokens each slot stands for."""
        ...

    def nbytes(self, layer: int | None = None) -> int:
        """Bytes held, of one layer or of all."""
        ...

    def parts(self, layer: int | None = None) -> Mapping[str, int]:
        """Bytes held by part."""
        ...

    def clone(self) -> "KVCache":
        """A copy that shares no storage."""
        ...

    def reorder(self, samples: Tensor) -> None:
        """Make sample i a copy of the present sample `samples[i]`."""
        ...


@runtime_checkable
class StateCache(Protocol):
    """What the layers of a hybrid that keep a state ask beside `KVCache`."""

    def state(self, layer: int) -> State:
        """The state after all tokens so far."""
        ...

    def set_state(self, layer: int, state: State, pos: Tensor) -> None:
        """Replace it by the state after tokens at `pos` (batch, n), −1 where there is none."""
        ...


@runtime_checkable
class SideAccess(Protocol):
    """The tables beside the slots."""

    def __getitem__(self, name: str) -> Sequence[Tensor]: ...
