"""The tensors behind the blocks of one layer of a paged KV cache: keys and values, plain or in codes."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoestring.kernels.cached_attention import StoredRows
from shoestring.numbers.block_format import BlockFormat
from shoestring.numbers.token_cache_format import decode_rows, encode_rows

Parts = dict[str, Tensor]
Places = Int[Tensor, " n"]
_NAMES = {"k": "cached keys", "v": "cached values"}


class BlockStorage:
    """Blocks (block, head, slot, …) by part: "k" and "v", and "k_scales", "v_scales" where they are in codes.

    Raises: ValueError where codes of these widths do not fit the channels of a head.
    """

    def __init__(
        self,
        form: BlockFormat,
        n_blocks: int,
        n_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if reason := form.tokens.why_not(head_dim):
            raise ValueError(reason)
        self.form, self.head_dim, self.dtype = form, head_dim, dtype
        self.parts: Parts = {}
        shape = (n_blocks, n_heads, form.slots)
        for part, bits in form.tokens.widths.items():
            width, kind = (head_dim, dtype) if bits == 16 else (head_dim * bits // 8, torch.uint8)
            # Zeros, not what was there: a slot that nobody wrote must not turn sums into NaN.
            self.parts[part] = torch.zeros(*shape, width, dtype=kind, device=device)
            if bits < 16:
                self.parts[f"{part}_scales"] = torch.zeros(*shape, 2, dtype=torch.float16, device=device)

    @property
    def n_blocks(self) -> int:
        """Blocks there is room for."""
        return self.parts["k"].shape[0]

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes allocated for keys, for values, and for scales and offsets."""
        held = {"k": 0, "v": 0, "scales": 0}
        for part, tensor in self.parts.items():
            held[part if part in held else "scales"] += tensor.untyped_storage().nbytes()
        return held

    @property
    def slot_bits(self) -> tuple[int, int]:
        """Bits of the key and of the value of one slot of one head, scales included."""
        k, v = (
            sum(8 * t.shape[-1] * t.element_size() for name, t in self.parts.items() if name[0] == part)
            for part in ("k", "v")
        )
        return k, v

    def rows(self) -> tuple[StoredRows, StoredRows]:
        """Keys and values as kernels read them, (block · head, slot, …); good until blocks are added."""
        k, v = (
            StoredRows(self.parts[part].flatten(0, 1), self.head_dim, self._grids(part)) for part in _NAMES
        )
        return k, v

    def _grids(self, part: str) -> Tensor | None:
        grids = self.parts.get(f"{part}_scales")
        return None if grids is None else grids.flatten(0, 1)

    def encode(self, k: Float[Tensor, "*lead dim"], v: Float[Tensor, "*lead dim"]) -> Parts:
        """Keys and values as they are stored, (…, width) by part. Raises: as `encode_rows`."""
        stored: Parts = {}
        for part, x in (("k", k), ("v", v)):
            bits = self.form.tokens.widths[part]
            if bits == 16:
                stored[part] = x.to(self.dtype)
            else:
                stored[part], stored[f"{part}_scales"] = encode_rows(x, bits, _NAMES[part])
        return stored

    def decode(self, stored: Parts) -> tuple[Float[Tensor, "*lead dim"], Float[Tensor, "*lead dim"]]:
        """The keys and values of what is stored, in the type of the cache."""
        k, v = (
            stored[part]
            if bits == 16
            else decode_rows(stored[part], stored[f"{part}_scales"], bits, self.head_dim).to(self.dtype)
            for part, bits in self.form.tokens.widths.items()
        )
        return k, v

    def write(self, block: Places, head: Places, slot: Places, stored: Parts) -> None:
        """Put stored rows (n, width) at these places."""
        for part, tensor in self.parts.items():
            tensor[block, head, slot] = stored[part]

    def read(self, block: Places, head: Places, slot: Places) -> Parts:
        """The stored rows (n, width) at these places."""
        return {part: tensor[block, head, slot] for part, tensor in self.parts.items()}

    def read_blocks(self, table: Int[Tensor, "batch blocks"]) -> Parts:
        """Whole blocks one after the other, (batch, heads, blocks · slots, width) by part."""
        return {part: tensor[table].transpose(1, 2).flatten(2, 3) for part, tensor in self.parts.items()}

    def copy_block(self, source: int, target: int) -> None:
        """Make one block what another is."""
        for tensor in self.parts.values():
            tensor[target] = tensor[source]

    def keep_blocks(self, blocks: list[int], room: int) -> None:
        """Block i becomes what `blocks[i]` was, with room for `room` blocks."""
        for part, tensor in self.parts.items():
            kept = tensor.new_zeros(room, *tensor.shape[1:])
            kept[: len(blocks)] = tensor[blocks]
            self.parts[part] = kept

    def clone(self) -> "BlockStorage":
        """A copy that shares no storage."""
        other = BlockStorage.__new__(BlockStorage)
        other.form, other.head_dim, other.dtype = self.form, self.head_dim, self.dtype
        other.parts = {part: tensor.clone() for part, tensor in self.parts.items()}
        return other
