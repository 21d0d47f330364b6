"""The plain KV cache: keys and values as they come, contiguous, with room to grow."""

import torch
from torch import Tensor

from shoestring.generation.slot_cache import POS, LayerStore
from shoestring.generation.slot_table import SlotTable
from shoestring.generation.step_cache import ColumnStore, StepCache


class DenseStore(ColumnStore):
    """Keys and values of one layer as two columns of its slot table."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that this store fills."""
        return ("k", "v", POS)

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

    def clone(self) -> "DenseStore":
        return DenseStore(self.table.clone())


class DenseCache(StepCache):
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


def dense_store(
    batch: int, n_heads: int, head_dim: int, *, dtype: torch.dtype, device: torch.device | str, capacity: int
) -> DenseStore:
    """An empty store of one layer."""
    table = SlotTable(batch, n_heads, device, capacity)
    table.add_column("k", (head_dim,), dtype, per_head=True)
    table.add_column("v", (head_dim,), dtype, per_head=True)
    table.add_column(POS, (), torch.int32, per_head=False)
    return DenseStore(table)
