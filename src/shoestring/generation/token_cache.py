"""A KV cache in which every token is codes on a grid of its own, 8, 4 or 2 bits for keys and for values.

Source: TurboMind (InternLM/lmdeploy), KV cache quantisation; see `TokenCacheFormat`.
"""

import torch
from torch import Tensor

from shoestring.generation.slot_cache import POS, LayerStore
from shoestring.generation.slot_table import SlotTable
from shoestring.generation.step_cache import ColumnStore, StepCache
from shoestring.numbers.token_cache_format import (
    TokenCacheFormat,
    check_float16,
    decode_rows,
    encode_rows,
    row_bytes,
)

NAMES = {"k": "cached keys", "v": "cached values"}


def grid_column(part: str) -> str:
    """The column of the grids of "k" or "v"."""
    return f"{part} grid"


class TokenStore(ColumnStore):
    """Keys and values of one layer as columns of its slot table: codes and grids, or float16.

    dtype: in which keys and values are given back.
    """

    def __init__(self, table: SlotTable, form: TokenCacheFormat, head_dim: int, dtype: torch.dtype) -> None:
        super().__init__(table)
        self.form, self.head_dim, self.dtype = form, head_dim, dtype

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that this store fills."""
        grids = [grid_column(part) for part, bits in self.form.widths.items() if bits < 16]
        return ("k", "v", POS, *grids)

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of every tensor's storage, by part."""
        sizes = {name: column.data.untyped_storage().nbytes() for name, column in self.table.columns.items()}
        held = {part: sizes[part] for part in ("k", "v")}
        held["scales"] = sum(sizes.get(grid_column(part), 0) for part in ("k", "v"))
        return {**held, "tables": self.table.nbytes - sum(held.values())}

    @property
    def read_bits(self) -> tuple[int, int]:
        """Bits of all keys and of all values in use, grids included."""
        slots = self.table.slots("k")
        k, v = (8 * slots * row_bytes(bits, self.head_dim) for bits in self.form.widths.values())
        return k, v

    def append(self, k: Tensor, v: Tensor, pos: Tensor, store: Tensor | None) -> Tensor:
        """Round and store. Raises: ValueError where a value is not finite or beyond what float16 can say."""
        values = {POS: pos[:, None]}
        for part, given in (("k", k), ("v", v)):
            bits = self.form.widths[part]
            if bits == 16:
                values[part] = check_float16(given, NAMES[part])
            else:
                values[part], values[grid_column(part)] = encode_rows(given, bits, NAMES[part])
        return self.table.append(pos.shape[1], store, **values)

    def keys_values(self) -> tuple[Tensor, Tensor]:
        """All keys and values, (batch, heads, longest row, channels); codes are decoded at every call."""
        k, v = (self._read(part) for part in ("k", "v"))
        return k, v

    def clone(self) -> "TokenStore":
        return TokenStore(self.table.clone(), self.form, self.head_dim, self.dtype)

    def _read(self, part: str) -> Tensor:
        bits, stored = self.form.widths[part], self.table.read(part)
        if bits == 16:
            return stored.to(self.dtype)
        return decode_rows(stored, self.table.read(grid_column(part)), bits, self.head_dim).to(self.dtype)


class TokenCache(StepCache):
    """A cache whose tokens are stored in a `TokenCacheFormat`, the newest too: a step reads what is stored.

    Evicting, reordering and taking back round nothing again. dtype: in which `view` gives keys and values.
    capacity: tokens to allocate per sample at once; `bytes_for` predicts the bytes for it exactly.

    Raises: ValueError where codes of these widths do not fit the channels of a head, or for sizes below 1.
    """

    def __init__(
        self,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        head_dim: int,
        form: TokenCacheFormat,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        capacity: int = 0,
    ) -> None:
        layers: list[LayerStore] = [
            token_store(batch, n_kv_heads, head_dim, form, dtype=dtype, device=device, capacity=capacity)
            for _ in range(n_layers)
        ]
        super().__init__(layers, n_kv_heads, head_dim)

    @property
    def form(self) -> TokenCacheFormat:
        """How tokens are stored."""
        first = self.layers[0]
        assert isinstance(first, TokenStore)
        return first.form


def token_store(
    batch: int,
    n_heads: int,
    head_dim: int,
    form: TokenCacheFormat,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    capacity: int,
) -> TokenStore:
    """An empty store of one layer. Raises: ValueError where codes of these widths do not fit `head_dim`."""
    if reason := form.why_not(head_dim):
        raise ValueError(reason)
    table = SlotTable(batch, n_heads, device, capacity)
    for part, bits in form.widths.items():
        kind = (head_dim, torch.float16) if bits == 16 else (head_dim * bits // 8, torch.uint8)
        table.add_column(part, kind[:1], kind[1], per_head=True)
    table.add_column(POS, (), torch.int32, per_head=False)
    for part, bits in form.widths.items():
        if bits < 16:
            table.add_column(grid_column(part), (2,), torch.float16, per_head=True)
    return TokenStore(table, form, head_dim, dtype)
