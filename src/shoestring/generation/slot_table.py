"""The slots of one layer of a KV cache: named columns of one ragged length, contiguous and growing.

A slot is a place in storage; which logical position it holds is the content of a column. Columns have one row
per KV head (`per_head`) or one shared by all heads; when heads first keep different slots, shared rows are
copied out to every head.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

GROWTH_SLOTS = 32
"""A full table grows by this many slots, or by an eighth if that is more: reading a cache at every step costs
more than copying it every eighth of its length, and memory held in reserve stays small."""


@dataclass
class Column:
    """data: (batch, rows, capacity, …); new slots that are given no value hold `fill`."""

    data: Tensor
    per_head: bool
    fill: int | float


class SlotTable:
    """Columns over the slots of one layer; each sample, and each head once they differ, has its own length.

    n_heads: rows of per-head columns. capacity: slots to allocate at once for columns that are added later.
    usual_slots: a table that grows stops here unless more are needed; None where no end is known.
    """

    def __init__(
        self,
        batch: int,
        n_heads: int,
        device: torch.device | str,
        capacity: int = 0,
        usual_slots: int | None = None,
    ) -> None:
        if batch < 1 or n_heads < 1 or capacity < 0:
            raise ValueError(
                f"batch={batch} and heads={n_heads} must be at least 1, and capacity={capacity} at least 0."
            )
        self.batch, self.n_heads, self.device, self.capacity = batch, n_heads, torch.device(device), capacity
        self.rows, self.usual_slots = 1, usual_slots
        self.columns: dict[str, Column] = {}
        # The common length where all rows have the same one: then no index is ever needed.
        self._uniform: int | None = 0
        self._counts = torch.zeros(batch, 1, dtype=torch.long, device=device)

    @property
    def uniform(self) -> int | None:
        """The number of slots in every row, or None where rows differ."""
        return self._uniform

    @property
    def counts(self) -> Int[Tensor, "batch rows"]:
        """Slots of each sample, in one row or one per head."""
        if self._uniform is not None:
            return torch.full((self.batch, self.rows), self._uniform, device=self.device)
        return self._counts

    @property
    def longest(self) -> int:
        """The number of slots of the longest row."""
        return self._uniform if self._uniform is not None else int(self._counts.max())

    def slots(self, name: str) -> int:
        """Slots in use in all samples and rows of a column."""
        data = self.columns[name].data
        if self._uniform is not None:
            return data.shape[0] * data.shape[1] * self._uniform
        return int(self._counts.expand(-1, data.shape[1]).sum())

    @property
    def nbytes(self) -> int:
        """Bytes allocated for all columns, reserve included, and for the lengths."""
        held = sum(column.data.untyped_storage().nbytes() for column in self.columns.values())
        return held + self._counts.untyped_storage().nbytes()

    def add_column(
        self, name: str, tail: tuple[int, ...], dtype: torch.dtype, *, per_head: bool, fill: int | float = 0
    ) -> None:
        """Add a column of shape (batch, heads or shared, slots, *tail). Raises: ValueError if it exists."""
        if name in self.columns:
            raise ValueError(f"column {name!r} exists already in this cache.")
        rows = self.n_heads if per_head else self.rows
        shape = (self.batch, rows, self.capacity, *tail)
        self.columns[name] = Column(torch.full(shape, fill, dtype=dtype, device=self.device), per_head, fill)

    def read(self, name: str) -> Tensor:
        """A column up to the longest row, a window on the storage: (batch, rows, longest, …)."""
        return self.columns[name].data[:, :, : self.longest]

    def valid(self) -> Bool[Tensor, "batch rows slots"] | None:
        """Which slots of `read` hold something; None where all do."""
        if self._uniform is not None:
            return None
        return torch.arange(self.longest, device=self.device) < self._counts[:, :, None]

    def append(
        self, n: int, store: Bool[Tensor, "batch n"] | None = None, **values: Tensor
    ) -> Int[Tensor, "batch n"] | Int[Tensor, "batch rows n"]:
        """Write `n` new slots to every row, or those that `store` marks; the slots written, −1 where none.

        values: (batch, rows, n, …) by column name. Slots are (batch, n) where all heads get the same ones.
        """
        if store is None and self._uniform is not None:
            start = self._uniform
            self.reserve(start + n)
            for name, column in self.columns.items():
                column.data[:, :, start : start + n] = values.get(name, column.fill)
            self._uniform = start + n
            return torch.arange(start, start + n, device=self.device).expand(self.batch, n)
        if store is None:
            store = torch.ones(self.batch, n, dtype=torch.bool, device=self.device)
        marked = store[:, None].expand(self.batch, self.rows, n)
        slots = torch.where(marked, self.counts[:, :, None] + marked.cumsum(-1) - 1, -1)
        self.reserve(self.longest + n)
        for name, column in self.columns.items():
            rows = column.data.shape[1]
            sample, row, index = store[:, None].expand(self.batch, rows, n).nonzero(as_tuple=True)
            target = slots[sample, row if self.rows > 1 else 0, index]
            value = values.get(name)
            if value is None:
                column.data[sample, row, target] = column.fill
            else:
                given = value.expand(-1, rows, *value.shape[2:])[sample, row, index]
                column.data[sample, row, target] = given.to(column.data.dtype)
        self._set_counts(self.counts + marked.sum(-1))
        return slots[:, 0] if self.rows == 1 else slots

    def claim(self, n: int) -> None:
        """Count `n` more slots as used in every row: the caller writes all columns.

        Raises: ValueError where rows differ in length."""
        if self._uniform is None:
            raise ValueError("rows have different lengths; slots can only be claimed where they have one.")
        self.reserve(self._uniform + n)
        self._uniform += n

    def unclaim(self, n: int) -> None:
        """Count the last `n` slots of every row as unused. Raises: ValueError where rows differ in length."""
        if self._uniform is None or n > self._uniform:
            raise ValueError(f"{n} slots are not held by all rows alike; truncate takes counts of each.")
        self._uniform -= n

    def gather(self, keep: Int[Tensor, "batch rows m"]) -> None:
        """Keep these slots, in this order, and free the rest; −1 is no slot and stands at the end of a row.

        One row keeps the same slots of all heads; a row per head lets the heads differ from then on.
        """
        if keep.shape[1] > self.rows:
            self.split_heads()
        elif keep.shape[1] < self.rows:
            keep = keep.expand(-1, self.rows, -1)
        self.capacity = keep.shape[2]
        for column in self.columns.values():
            rows = column.data.shape[1]
            index = keep.clamp(min=0).expand(-1, rows, -1)
            index = index.reshape(*index.shape, *[1] * (column.data.ndim - 3))
            column.data = column.data.gather(2, index.expand(-1, -1, -1, *column.data.shape[3:]))
        self._set_counts((keep >= 0).sum(-1))

    def load(self, counts: Int[Tensor, "batch rows"], **values: Tensor) -> None:
        """Replace all slots: values (batch, rows, slots, …) of which `counts` of every row are to be held."""
        slots = next(iter(values.values())).shape[2]
        counts = counts.expand(-1, self.rows)
        self.reserve(slots)
        for name, column in self.columns.items():
            column.data[:, :, :slots] = values[name]
        self._set_counts(counts)

    def free_reserve(self) -> None:
        """Give back the room behind the longest row."""
        self.capacity = self.longest
        for column in self.columns.values():
            column.data = column.data[:, :, : self.capacity].clone()

    def truncate(self, counts: Int[Tensor, "batch rows"]) -> None:
        """Drop all slots from `counts` on; nothing is freed."""
        self._set_counts(torch.minimum(self.counts, counts.expand(-1, self.rows)))

    def permute(self, start: Int[Tensor, "batch rows"], order: Int[Tensor, "batch m"]) -> None:
        """Behind the first `start` slots of every row, keep slots `start + order` only, in that order.

        −1 is no slot and must stand at the end of a row. Only the kept slots are moved.
        """
        m = order.shape[1]
        self.reserve(int(start.max()) + m)
        source = start[:, :, None] + order[:, None].clamp(min=0)
        target = start[:, :, None] + torch.arange(m, device=self.device)
        for column in self.columns.values():
            batch, rows, _, *tail = column.data.shape

            def spread(
                index: Tensor, shape: tuple[int, ...] = (batch, rows, m, *tail), ones: int = len(tail)
            ) -> Tensor:
                return index.reshape(*index.shape, *[1] * ones).expand(shape)

            column.data.scatter_(2, spread(target), column.data.gather(2, spread(source)))
        self._set_counts(start + (order >= 0).sum(-1, keepdim=True))

    def split_heads(self) -> None:
        """Give every head its own copy of what the heads shared, and its own length."""
        if self.rows == self.n_heads:
            return
        for column in self.columns.values():
            if not column.per_head:
                column.data = column.data.expand(-1, self.n_heads, *column.data.shape[2:]).contiguous()
        counts = self.counts
        self.rows = self.n_heads
        self._set_counts(counts.expand(-1, self.n_heads))

    def reorder(self, samples: Int[Tensor, " new_batch"]) -> None:
        """Make row i a copy of sample `samples[i]`."""
        counts = self.counts[samples]
        self.batch = len(samples)
        for column in self.columns.values():
            column.data = column.data.index_select(0, samples)
        self._set_counts(counts)

    def reserve(self, slots: int) -> None:
        """Make room for `slots` slots in every row."""
        if slots <= self.capacity:
            return
        if self.capacity:
            grown_slots = self.capacity + max(GROWTH_SLOTS, self.capacity // 8)
            slots = max(
                slots, grown_slots if self.usual_slots is None else min(grown_slots, self.usual_slots)
            )
        for column in self.columns.values():
            batch, rows, _, *tail = column.data.shape
            grown = torch.full(
                (batch, rows, slots, *tail), column.fill, dtype=column.data.dtype, device=self.device
            )
            grown[:, :, : self.capacity] = column.data
            column.data = grown
        self.capacity = slots

    def clone(self) -> "SlotTable":
        """A copy that shares no storage."""
        other = SlotTable(self.batch, self.n_heads, self.device, self.capacity, self.usual_slots)
        other.rows, other._uniform, other._counts = self.rows, self._uniform, self._counts.clone()
        other.columns = {
            name: Column(column.data.clone(), column.per_head, column.fill)
            for name, column in self.columns.items()
        }
        return other

    def _set_counts(self, counts: Int[Tensor, "batch rows"]) -> None:
        smallest, largest = (int(x) for x in counts.aminmax()) if counts.numel() else (0, 0)
        self._uniform = largest if smallest == largest else None
        self._counts = counts.contiguous()
