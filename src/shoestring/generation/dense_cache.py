"""The plain KV cache: keys and values as they come, contiguous, with room to grow."""

import torch
from torch import Tensor

from shoestring.generation.slot_cache import POS, LayerStore, SlotCache
from shoestring.generation.slot_table import SlotTable

_COLUMNS = ("k", "v", POS)


class DenseStore:
    """Keys and values of one layer as two columns of its slot table."""

    def __init__(self, table: SlotTable) -> None:
        self.table = table

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of every tensor's storage, by part."""
        held = {part: self.table.columns[part].data.untyped_storage().nbytes() for part in ("k", "v")}
        return {**held, "tables": self.table.nbytes - sum(held.values())}

    @property
    def read_bits(self) -> tuple[int, int]:
        """Bits of all keys and of all values in use."""
        column = self.table.columns["k"].data
        per_slot = column.shape[-1] * column.element_size() * 8
        bits = self.table.slots("k") * per_slot
        return bits, bits

    def append(self, k: Tensor, v: Tensor, pos: Tensor, store: Tensor | None) -> Tensor:
        return self.table.append(pos.shape[1], store, k=k, v=v, **{POS: pos[:, None]})

    def keys_values(self) -> tuple[Tensor, Tensor]:
        return self.table.read("k"), self.table.read("v")

    def gather(self, keep: Tensor) -> None:
        self.table.gather(keep)

    def truncate(self, counts: Tensor) -> None:
        self.table.truncate(counts)

    def permute(self, start: Tensor, order: Tensor) -> None:
        self.table.permute(start, order)

    def reorder(self, samples: Tensor) -> None:
        self.table.reorder(samples)

    def clone(self) -> "DenseStore":
        return DenseStore(self.table.clone())


class DenseCache(SlotCache):
    """The exact cache: every key and value in full, the reference of all others.

    capacity: slots to allocate per sample at once; more are added when they are needed.

    Raises: ValueError for sizes below 1 (capacity: below 0).
    """

    def __init__(
        self,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        capacity: int = 0,
    ) -> None:
        layers: list[LayerStore] = [
            dense_store(batch, n_kv_heads, head_dim, dtype=dtype, device=device, capacity=capacity)
            for _ in range(n_layers)
        ]
        super().__init__(layers, n_kv_heads, head_dim)

    def plain_slots(self) -> int | None:
        """The slots of every layer, where slot i of each holds the token at position i and nothing else is
        kept beside keys and values; None where tokens were evicted, reordered or left out."""
        tables = [layer.table for layer in self.layers]
        slots = tables[0].uniform
        plain = all(
            table.uniform == slots and table.rows == 1 and len(table.columns) == len(_COLUMNS)
            for table in tables
        )
        # As many slots as positions so far: none is missing.
        return (
            slots if plain and not self.permuted and self.batch == 1 and slots == int(self.next_pos) else None
        )

    def claim(self, n: int) -> None:
        """Count `n` more slots and positions as filled: the caller writes them, keys rotated, there."""
        for layer in self.layers:
            layer.table.claim(n)
        self.next_pos, self._last_pos = self.next_pos + n, None

    def storage(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each layer: keys and values (batch, heads, capacity, dim) and positions (batch, 1, capacity), as
        they are allocated now; a growing cache allocates anew."""
        return [tuple(layer.table.columns[name].data for name in _COLUMNS) for layer in self.layers]  # type: ignore[misc]

    def count_reads(self) -> None:
        """Note in `traffic` that all keys and values of all layers are read once."""
        for layer in self.layers:
            self.traffic.count(*layer.read_bits)


def dense_store(
    batch: int, n_heads: int, head_dim: int, *, dtype: torch.dtype, device: torch.device | str, capacity: int
) -> DenseStore:
    """An empty store of one layer."""
    table = SlotTable(batch, n_heads, device, capacity)
    table.add_column("k", (head_dim,), dtype, per_head=True)
    table.add_column("v", (head_dim,), dtype, per_head=True)
    table.add_column(POS, (), torch.int32, per_head=False)
    return DenseStore(table)
