"""How a paged KV cache stores its blocks: so many tokens a block, each in a format of its own."""

from dataclasses import dataclass

import torch

from shoestring.numbers.token_cache_format import TokenCacheFormat, row_bytes

_PLAIN = TokenCacheFormat(16, 16)


@dataclass(frozen=True)
class BlockFormat:
    """The format of a block of cached tokens.

    slots: tokens of a block. tokens: the widths of their keys and values. A part of 16 bits is not in codes:
    it is kept as it is, in the type of the cache, usually float16.

    Raises: ValueError for a block without slots.
    """

    slots: int = 16
    tokens: TokenCacheFormat = _PLAIN

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots={self.slots}: a block holds at least 1 token; 16 and 64 are usual.")

    @property
    def exact(self) -> bool:
        """Whether both keys and values are kept as they are."""
        return self.tokens == _PLAIN

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.slots)

    def token_bytes(self, n_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes of the key and the value of one token in one layer, grids included.

        Raises: ValueError where codes of these widths do not fit the channels.
        """
        if reason := self.tokens.why_not(head_dim):
            raise ValueError(reason)
        return n_kv_heads * sum(
            head_dim * dtype.itemsize if bits == 16 else row_bytes(bits, head_dim)
            for bits in self.tokens.widths.values()
        )

    def block_bytes(self, n_kv_heads: int, head_dim: int, dtype: torch.dtype, n_layers: int = 1) -> int:
        """Bytes of one block of tokens in `n_layers` layers."""
        return n_layers * self.slots * self.token_bytes(n_kv_heads, head_dim, dtype)
