"""A KV cache in 8, 4 or 2 bits: old tokens in codes, the last ones in full.

Source: Liu et al. 2024, "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", section 3.
"""

import torch
from torch import Tensor

from shoestring.generation.quantised_blocks import QuantisedBlocks
from shoestring.generation.slot_cache import POS, LayerStore, SlotCache
from shoestring.generation.slot_table import SlotTable
from shoestring.numbers.cache_format import CacheFormat


class QuantStore:
    """Keys and values of one layer: blocks of the oldest tokens, then a tail in full precision.

    The first slots of all rows are in blocks, as many as the shortest row allows; all others are in the tail.
    """

    def __init__(self, table: SlotTable, tail: SlotTable, blocks: QuantisedBlocks) -> None:
        self.table, self.tail, self.blocks, self.form = table, tail, blocks, blocks.form

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of every tensor's storage, by part."""
        return {**self.blocks.nbytes, "tail": self.tail.nbytes, "tables": self.table.nbytes}

    @property
    def read_bits(self) -> tuple[int, int]:
        """Bits of all keys and of all values in use, scales included."""
        k, v = self.blocks.read_bits
        column = self.tail.columns["k"].data
        tail = self.tail.slots("k") * column.shape[-1] * column.element_size() * 8
        return k + tail, v + tail

    def append(self, k: Tensor, v: Tensor, pos: Tensor, store: Tensor | None) -> Tensor:
        """Add to the tail; whole groups that the tail need not hold any more go into blocks."""
        n = pos.shape[1]
        slots = self.table.append(n, store, **{POS: pos[:, None]})
        uniform = self.tail.uniform
        if store is None and uniform is not None and self.form.quantised_tokens(uniform + n):
            # The tail never holds a long chunk, not even for a moment: its room stays what was allocated.
            k = torch.cat([self.tail.read("k"), k], dim=2)
            v = torch.cat([self.tail.read("v"), v], dim=2)
            self._refill(k, v, torch.full((k.shape[0], 1), uniform + n, device=k.device))
            return slots
        self.tail.append(n, store, k=k, v=v)
        if self.form.quantised_tokens(int(self.tail.counts.min())):
            self._refill(self.tail.read("k"), self.tail.read("v"), self.tail.counts)
        return slots

    def keys_values(self) -> tuple[Tensor, Tensor]:
        """All keys and values, (batch, heads, longest row, channels); codes are decoded at every call."""
        if not self.blocks.count:
            return self.tail.read("k"), self.tail.read("v")
        recent, old = self.tail.read("k"), self.blocks.tokens
        batch, heads, last, dim = recent.shape
        k, v = (recent.new_empty(batch, heads, old + last, dim) for _ in range(2))
        self.blocks.read_into(k[:, :, :old], v[:, :, :old])
        k[:, :, old:], v[:, :, old:] = recent, self.tail.read("v")
        return k, v

    def gather(self, keep: Tensor) -> None:
        """Keep these slots. Whole blocks before the first change stay; what follows is regrouped, and codes
        that change their group are rounded once more."""
        same = (keep == torch.arange(keep.shape[2], device=keep.device)).all(0).all(0)
        untouched = int(same.long().cumprod(0).sum())
        k, v = self.keys_values()
        self.table.gather(keep)
        k, v = (self._pick(data, keep) for data in (k, v))
        self.blocks.truncate(min(self.blocks.count, untouched // self.form.group_size))
        old = self.blocks.tokens
        self._refill(k[:, :, old:], v[:, :, old:], self.table.counts - old)
        self.blocks.free_reserve()
        self.tail.free_reserve()

    def truncate(self, counts: Tensor) -> None:
        """Drop slots from `counts` on; what is left of a block that is cut moves to the tail as it is."""
        self.table.truncate(counts)
        left, old = self.table.counts, self.blocks.tokens
        if int(left.min()) >= old:
            self.tail.truncate(left - old)
            return
        k, v = self.keys_values()
        self.blocks.truncate(int(left.min()) // self.form.group_size)
        self._load_tail(
            k[:, :, self.blocks.tokens :], v[:, :, self.blocks.tokens :], left - self.blocks.tokens
        )

    def permute(self, start: Tensor, order: Tensor) -> None:
        """Reorder behind `start`: in the tail where it can be done there."""
        old = self.blocks.tokens
        if int(start.min()) >= old:
            self.table.permute(start, order)
            self.tail.permute(start - old, order)
            return
        longest = int(start.max())
        index = torch.arange(longest + order.shape[1], device=start.device) - start[:, :, None]
        index = index.expand(-1, start.shape[1], -1)
        padded = torch.nn.functional.pad(order, (0, 1), value=-1)[:, None].expand(-1, start.shape[1], -1)
        moved = padded.gather(2, index.clamp(0, order.shape[1]))
        moved = torch.where(moved >= 0, moved + start[:, :, None], -1)
        self.gather(torch.where(index < 0, index + start[:, :, None], moved))

    def reorder(self, samples: Tensor) -> None:
        """Make sample i a copy of the present sample `samples[i]`."""
        for part in (self.table, self.tail, self.blocks):
            part.reorder(samples)

    def clone(self) -> "QuantStore":
        """A copy that shares no storage."""
        return QuantStore(self.table.clone(), self.tail.clone(), self.blocks.clone())

    def _pick(self, data: Tensor, keep: Tensor) -> Tensor:
        index = keep.clamp(min=0).expand(-1, data.shape[1], -1)[..., None]
        return data.gather(2, index.expand(-1, -1, -1, data.shape[3]))

    def _refill(self, k: Tensor, v: Tensor, counts: Tensor) -> None:
        """Behind the blocks come these, `counts` in every row: whole groups to blocks, the rest stays."""
        ready = self.form.quantised_tokens(int(counts.min()))
        if ready:
            self.blocks.append(k[:, :, :ready], v[:, :, :ready])
        self._load_tail(k[:, :, ready:], v[:, :, ready:], counts - ready)

    def _load_tail(self, k: Tensor, v: Tensor, counts: Tensor) -> None:
        if counts.shape[1] > self.tail.rows:
            self.tail.split_heads()
        # The source may be a window on the tail's own storage.
        self.tail.load(counts, k=k.clone(), v=v.clone())


class QuantCache(SlotCache):
    """A cache whose old tokens are stored in a `CacheFormat`; `view` decodes a layer when it is asked for.

    Evicting or cutting inside the blocks works on what is stored: values that change their group are rounded
    again. capacity: tokens to allocate per sample at once; `bytes_for` predicts the bytes for it exactly.

    Raises: ValueError where the group size does not divide the channels of a head, or for sizes below 1.
    """

    def __init__(
        self,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        head_dim: int,
        form: CacheFormat,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        capacity: int = 0,
    ) -> None:
        layers: list[LayerStore] = [
            quant_store(batch, n_kv_heads, head_dim, form, dtype=dtype, device=device, capacity=capacity)
            for _ in range(n_layers)
        ]
        super().__init__(layers, n_kv_heads, head_dim)

    @property
    def exact_tokens(self) -> int:
        """The last tokens that are sure to be in full precision."""
        return self.form.tail_tokens

    @property
    def form(self) -> CacheFormat:
        """How old tokens are stored."""
        first = self.layers[0]
        assert isinstance(first, QuantStore)
        return first.form


def quant_store(
    batch: int,
    n_heads: int,
    head_dim: int,
    form: CacheFormat,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    capacity: int,
) -> QuantStore:
    """An empty store of one layer. Raises: ValueError where the group size does not divide `head_dim`."""
    if reason := form.why_not(head_dim):
        raise ValueError(reason)
    table = SlotTable(batch, n_heads, device, capacity)
    table.add_column(POS, (), torch.int32, per_head=False)
    tail = SlotTable(batch, n_heads, device, min(capacity, form.tail_capacity), form.tail_capacity)
    tail.add_column("k", (head_dim,), dtype, per_head=True)
    tail.add_column("v", (head_dim,), dtype, per_head=True)
    blocks = form.quantised_tokens(capacity) // form.group_size
    return QuantStore(table, tail, QuantisedBlocks(form, batch, n_heads, head_dim, device, blocks))
