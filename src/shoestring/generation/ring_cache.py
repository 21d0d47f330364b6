"""A cache of the last tokens only: as many bytes after eight thousand tokens as after one.

Slots stay in the order of their tokens: when the room is full, what a window still reaches moves to its
front. That costs a copy of the window every `margin` tokens, and a view is a plain window on the storage,
where an index modulo the size would have to be gathered.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoestring.generation.dense_cache import DenseStore, dense_store
from shoestring.generation.slot_cache import SlotCache
from shoestring.generation.slot_table import SlotTable

MARGIN_TOKENS = 64


class RingCache(SlotCache):
    """The last `window` tokens before any query, and room for drafts that may be taken back.

    window: tokens that a query sees before its own. slack: tokens appended after a mark that `rollback` or
    `keep_path` may drop with the window before them still whole. margin: further slots, so that not every
    append moves the others. capacity: slots to allocate at once; never more than window + slack + margin, but
    for what one step brings.

    Raises: ValueError for sizes below 1.
    """

    def __init__(
        self,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        head_dim: int,
        window: int,
        slack: int,
        *,
        margin: int = MARGIN_TOKENS,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        capacity: int = 0,
    ) -> None:
        if min(window, slack, margin) < 1:
            raise ValueError(f"window={window}, slack={slack}, margin={margin}: all must be 1 or more.")
        self.window, self.slack, self.margin = window, slack, margin
        layers = [
            _ring_store(
                dense_store(
                    batch, n_kv_heads, head_dim, dtype=dtype, device=device, capacity=min(capacity, self.size)
                ),
                self.size,
            )
            for _ in range(n_layers)
        ]
        super().__init__([*layers], n_kv_heads, head_dim)

    @property
    def size(self) -> int:
        """Slots of a full ring."""
        return self.window + self.slack + self.margin

    @property
    def exact_tokens(self) -> int | None:
        """More new tokens than these push some out that the first of them see."""
        return self.margin

    def append(
        self,
        layer: int,
        k: Float[Tensor, "batch heads n dim"],
        v: Float[Tensor, "batch heads n dim"],
        pos: Int[Tensor, "batch n"],
        store: Bool[Tensor, "batch n"] | None = None,
    ) -> Int[Tensor, "batch n"] | Int[Tensor, "batch heads n"]:
        """As of every cache; the oldest tokens go when the ring is full. Of a step that brings more than the
        ring holds, tokens that do not outlast it get slot −1."""
        new = k.shape[2]
        table = self.layers[layer].table
        kept = self.window + self.slack
        if table.longest + new > self.size:
            self._drop(layer, (table.counts - max(kept - new, 0)).clamp(min=0) if new > self.margin else
                       (table.counts - kept).clamp(min=0))  # fmt: skip
        if new <= self.size:
            return super().append(layer, k, v, pos, store)
        skipped = new - kept
        slots = super().append(
            layer, k[:, :, skipped:], v[:, :, skipped:], pos[:, skipped:],
            None if store is None else store[:, skipped:],
        )  # fmt: skip
        return torch.cat([slots.new_full((*slots.shape[:-1], skipped), -1), slots], -1)

    def clone(self) -> "RingCache":
        """A copy that shares no storage; marks stay with the original."""
        other = super().clone()
        assert isinstance(other, RingCache)
        other.window, other.slack, other.margin = self.window, self.slack, self.margin
        return other

    def _drop(self, layer: int, count: Int[Tensor, "batch rows"]) -> None:
        """Free the first `count` slots of every row."""
        store = self.layers[layer]
        for counts in self._marks.values():
            counts[layer] = (counts[layer] - count).clamp(min=0)
        if store.table.uniform is not None:
            _shift(store.table, int(count[0, 0]))
            return
        left = store.table.counts - count
        index = torch.arange(int(left.max()), device=left.device)
        store.gather(torch.where(index < left[:, :, None], index + count[:, :, None], -1))


def _ring_store(store: DenseStore, size: int) -> DenseStore:
    store.table.usual_slots = size
    return store


def _shift(table: SlotTable, count: int) -> None:
    """Move all slots of equally long rows `count` places to the front, where the first ones were."""
    left = table.longest - count
    for column in table.columns.values():
        column.data[:, :, :left] = column.data[:, :, count : count + left].clone()
    table.unclaim(count)
