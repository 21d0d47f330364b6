"""The paged KV cache: slots in blocks that samples share until one of them writes.

A sample holds a table of blocks; its slot i is place i mod S of its block i // S. Forks (`reorder` with a
sample named twice) share all blocks, and the first write to a shared block copies it. Heads share a block, so
heads that keep different slots differ only in how far they fill it.

Source: Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention",
section 4.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.generation.block_allocator import BlockAllocator
from shoestring.generation.block_storage import BlockStorage
from shoestring.generation.slot_cache import POS, LayerStore, SlotCache
from shoestring.generation.slot_table import SlotTable
from shoestring.numbers.block_format import BlockFormat


class PagedStore:
    """Keys and values of one layer in blocks. tables[b]: the blocks of sample b, in the order of slots."""

    def __init__(
        self, table: SlotTable, storage: BlockStorage, blocks: BlockAllocator, tables: list[list[int]]
    ) -> None:
        self.table, self.storage, self.blocks, self.tables = table, storage, blocks, tables
        self.slots = storage.form.slots

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of every tensor's storage, by part."""
        return {**self.storage.nbytes, "tables": self.table.nbytes}

    @property
    def read_bits(self) -> tuple[int, int]:
        """Bits of all keys and of all values in use, scales included."""
        held = int(self.table.counts.expand(-1, self.table.n_heads).sum())
        k, v = self.storage.slot_bits
        return k * held, v * held

    def append(self, k: Tensor, v: Tensor, pos: Tensor, store: Tensor | None) -> Tensor:
        """Write the tokens behind those of their sample; shared blocks are copied first."""
        n = pos.shape[1]
        marked = torch.ones_like(pos, dtype=torch.bool) if store is None else store
        sample, head, token = marked[:, None].expand(-1, self.table.n_heads, -1).nonzero(as_tuple=True)
        # Before anything changes: numbers without codes are refused here.
        stored = self.storage.encode(k[sample, head, token], v[sample, head, token])
        before = self.table.counts.amin(1)
        slots = self.table.append(n, store, **{POS: pos[:, None]})
        self._make_room(before)
        by_head = slots if slots.ndim == 3 else slots[:, None].expand(-1, self.table.n_heads, -1)
        self._write(sample, head, by_head[sample, head, token], stored)
        return slots

    def keys_values(self) -> tuple[Tensor, Tensor]:
        """All keys and values, (batch, heads, longest row, channels); gathered and decoded at every call."""
        longest = self.table.longest
        stored = self.storage.read_blocks(self._index(self.storage.form.blocks_for(longest)))
        return self.storage.decode({part: rows[:, :, :longest] for part, rows in stored.items()})

    def gather(self, keep: Tensor) -> None:
        """Keep these slots, as they are stored, and free the memory of the rest. Blocks before the first
        change stay where they are, shared or not."""
        same = (keep == torch.arange(keep.shape[2], device=keep.device)).all(0).all(0)
        untouched = int(same.long().cumprod(0).sum()) // self.slots
        moved = keep[:, :, untouched * self.slots :].expand(-1, self.table.n_heads, -1)
        sample, head, index = (moved >= 0).nonzero(as_tuple=True)
        stored = self._read(sample, head, moved[sample, head, index])
        self.table.gather(keep)
        for table in self.tables:
            self._release(table, untouched)
        self._make_room(torch.full((len(self.tables),), untouched * self.slots))
        self._write(sample, head, index + untouched * self.slots, stored)
        self._trim()

    def truncate(self, counts: Tensor) -> None:
        """Drop all slots from `counts` on; blocks that nobody needs are free for other samples."""
        self.table.truncate(counts)
        self._release_unused()

    def permute(self, start: Tensor, order: Tensor) -> None:
        """Behind the first `start` slots of every row, keep slots `start + order` only, in that order."""
        sample, index = (order >= 0).nonzero(as_tuple=True)
        heads = self.table.n_heads
        head = torch.arange(heads, device=order.device).repeat(len(sample))
        sample, index = sample.repeat_interleave(heads), index.repeat_interleave(heads)
        first = start.expand(-1, heads)[sample, head]
        stored = self._read(sample, head, first + order[sample, index])
        self.table.permute(start, order)
        self._make_room(start.amin(1))
        self._write(sample, head, first + index, stored)
        self._release_unused()

    def reorder(self, samples: Tensor) -> None:
        """Make sample i a fork of the present sample `samples[i]`: no key or value is copied."""
        self.table.reorder(samples)
        forks = [list(self.tables[int(sample)]) for sample in samples]
        for fork in forks:
            for block in fork:
                self.blocks.share(block)
        for table in self.tables:
            self._release(table, 0)
        self.tables = forks

    def clone(self) -> "PagedStore":
        """A copy that shares no storage."""
        tables = [list(table) for table in self.tables]
        return PagedStore(self.table.clone(), self.storage.clone(), self.blocks.clone(), tables)

    def _index(self, blocks: int) -> Int[Tensor, "batch blocks"]:
        """The tables as one index, filled up with any block. Raises: FreedBlock."""
        for table in self.tables:
            for block in table:
                self.blocks.require_held(block)
        rows = [(table + [0] * blocks)[:blocks] for table in self.tables]
        return torch.tensor(rows, dtype=torch.long, device=self.table.device).reshape(len(rows), blocks)

    def _places(self, sample: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
        index = self._index(max((len(table) for table in self.tables), default=0))
        return index[sample, slot // self.slots], slot % self.slots

    def _read(self, sample: Tensor, head: Tensor, slot: Tensor) -> dict[str, Tensor]:
        block, place = self._places(sample, slot)
        return self.storage.read(block, head, place)

    def _write(self, sample: Tensor, head: Tensor, slot: Tensor, stored: dict[str, Tensor]) -> None:
        block, place = self._places(sample, slot)
        self.storage.write(block, head, place, stored)

    def _make_room(self, first: Int[Tensor, " batch"]) -> None:
        """Every sample holds blocks for its slots, and alone those from slot `first` on."""
        for table, start, length in zip(
            self.tables, first.tolist(), self.table.counts.amax(1).tolist(), strict=True
        ):
            needed = self.storage.form.blocks_for(length)
            for number in range(start // self.slots, min(len(table), needed)):
                if self.blocks.holders(table[number]) > 1:
                    shared, table[number] = table[number], self._take()
                    self.storage.copy_block(shared, table[number])
                    self.blocks.release(shared)
            while len(table) < needed:
                table.append(self._take())

    def _take(self) -> int:
        if not self.blocks.n_free:
            room = self.blocks.n_blocks + max(4, self.blocks.n_blocks // 8)
            self.storage.keep_blocks(list(range(self.storage.n_blocks)), room)
            self.blocks.grow(room)
        return self.blocks.take()

    def _release(self, table: list[int], keep: int) -> None:
        for block in table[keep:]:
            self.blocks.release(block)
        del table[keep:]

    def _release_unused(self) -> None:
        for table, length in zip(self.tables, self.table.counts.amax(1).tolist(), strict=True):
            self._release(table, self.storage.form.blocks_for(length))

    def _trim(self) -> None:
        """Give back the room of free blocks: held ones move together."""
        held = sorted({block for table in self.tables for block in table})
        new = {block: number for number, block in enumerate(held)}
        self.storage.keep_blocks(held, len(held))
        blocks = BlockAllocator(len(held))
        for _ in held:
            blocks.take()
        for block in held:
            for _ in range(self.blocks.holders(block) - 1):
                blocks.share(new[block])
        self.tables = [[new[block] for block in table] for table in self.tables]
        self.blocks = blocks


class PagedCache(SlotCache):
    """A cache in blocks of `form.slots` tokens, keys and values each plain or in 8, 4 or 2 bits.

    It reads like the others, by gathering; `decode_batch` attends to blocks where they are. Eviction works on
    what is stored, so nothing is rounded twice. capacity: tokens of each sample to have blocks for at once.

    Raises: ValueError for sizes below 1, or codes that do not fit the channels of a head.
    """

    def __init__(
        self,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        head_dim: int,
        form: BlockFormat = BlockFormat(),  # noqa: B008  (frozen)
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        capacity: int = 0,
    ) -> None:
        layers: list[LayerStore] = [
            paged_store(batch, n_kv_heads, head_dim, form, dtype=dtype, device=device, capacity=capacity)
            for _ in range(n_layers)
        ]
        super().__init__(layers, n_kv_heads, head_dim)

    @property
    def exact_tokens(self) -> int | None:
        """The last tokens that are sure to be as they were: all, or none where there are codes."""
        first = self.layers[0]
        assert isinstance(first, PagedStore)
        return None if first.storage.form.exact else 0


def paged_store(
    batch: int,
    n_heads: int,
    head_dim: int,
    form: BlockFormat,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    capacity: int,
) -> PagedStore:
    """An empty store of one layer."""
    table = SlotTable(batch, n_heads, device, capacity)
    table.add_column(POS, (), torch.int32, per_head=False)
    blocks = batch * form.blocks_for(capacity)
    storage = BlockStorage(form, blocks, n_heads, head_dim, dtype=dtype, device=device)
    return PagedStore(table, storage, BlockAllocator(blocks), [[] for _ in range(batch)])
