"""How a paged KV cache stores its blocks: so many tokens a block, keys and values each in their own width."""

from dataclasses import dataclass

import torch

from shoestring.numbers.token_codes import PARAMETER_BYTES, check_token_bits, code_bytes


@dataclass(frozen=True)
class BlockFormat:
    """The format of a block of cached tokens.

    slots: tokens of a block. key_bits, value_bits: 8 or 4, with a float16 scale and offset for every token of
    every head (see `token_codes`); None keeps keys or values as they are, in the type of the cache.

    Raises: ValueError for a block without slots, or a width that there is no code for.
    """

    slots: int = 16
    key_bits: int | None = None
    value_bits: int | None = None

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots={self.slots}: a block holds at least 1 token; 16 and 64 are usual.")
        for name in ("key_bits", "value_bits"):
            if (bits := getattr(self, name)) is not None:
                check_token_bits(bits, name)

    @property
    def exact(self) -> bool:
        """Whether both keys and values are kept as they are."""
        return self.key_bits is None and self.value_bits is None

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.slots)

    def token_bytes(self, n_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes of the key and the value of one token in one layer, scales and offsets included.

        Raises: ValueError where codes of a head do not fill whole bytes.
        """
        return n_kv_heads * sum(
            head_dim * dtype.itemsize if bits is None else code_bytes(bits, head_dim) + PARAMETER_BYTES
            for bits in (self.key_bits, self.value_bits)
        )

    def block_bytes(self, n_kv_heads: int, head_dim: int, dtype: torch.dtype, n_layers: int = 1) -> int:
        """Bytes of one block of tokens in `n_layers` layers."""
        return n_layers * self.slots * self.token_bytes(n_kv_heads, head_dim, dtype)
