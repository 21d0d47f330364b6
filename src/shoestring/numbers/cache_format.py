"""How a KV cache stores keys and values: few bits for old tokens, full precision for the last ones.

Keys share a scale along the tokens of one channel (a few key channels are large in every token), values along
the channels of one token. Both are `GroupedAffine` matrices with a real offset: k-bit codes, and a float16
scale and offset per group.

Source: Liu et al. 2024, "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", section 3.
"""

from dataclasses import dataclass

from shoestring.numbers.grouped_affine import GroupedAffine, ZeroPoint

CACHE_BITS = (2, 4, 8)


@dataclass(frozen=True)
class CacheFormat:
    """A storage format for keys and values.

    bits: width of a code, 8, 4 or 2. group_size: tokens that share a key scale, and channels that share a
    value scale; a multiple of 8, so that groups start on a byte. tail_tokens: at least so many of the last
    tokens keep full precision; the tail is cut down in whole groups, so it holds fewer than
    tail_tokens + group_size.

    Raises: ValueError for a value outside these.
    """

    bits: int = 4
    group_size: int = 32
    tail_tokens: int = 128

    def __post_init__(self) -> None:
        if self.bits not in CACHE_BITS:
            raise ValueError(f"bits={self.bits} is not a width of cached keys and values; use 8, 4 or 2.")
        if self.group_size < 8 or self.group_size % 8:
            raise ValueError(f"group_size={self.group_size} must be a multiple of 8, such as 32.")
        if self.tail_tokens < 0:
            raise ValueError(f"tail_tokens={self.tail_tokens} must be 0 or more.")

    @property
    def form(self) -> GroupedAffine:
        """The format of the matrices that hold keys (a row is a channel) and values (a row is a token)."""
        return GroupedAffine(self.bits, self.group_size, ZeroPoint.REAL)

    @property
    def tail_capacity(self) -> int:
        """The most tokens that the full-precision tail ever holds."""
        return self.tail_tokens + self.group_size - 1

    def why_not(self, head_dim: int) -> str | None:
        """The reason why heads of `head_dim` channels cannot be stored so, or None."""
        if head_dim % self.group_size == 0:
            return None
        divisors = [d for d in range(8, head_dim + 1, 8) if head_dim % d == 0]
        if not divisors:
            return f"heads have {head_dim} channels, which no group size (a multiple of 8) divides."
        advice = " or ".join(str(d) for d in divisors)
        size = self.group_size
        return f"heads have {head_dim} channels, which group_size={size} does not divide; use {advice}."

    def quantised_tokens(self, tokens: int) -> int:
        """How many of `tokens` cached tokens, the oldest, are stored in codes."""
        return max(0, tokens - self.tail_tokens) // self.group_size * self.group_size

    def block_bytes(self, n_kv_heads: int, head_dim: int) -> int:
        """Bytes of the keys and values of one group of tokens of one sequence in one layer, scales included.

        Raises: ValueError where the group size does not divide the channels.
        """
        if reason := self.why_not(head_dim):
            raise ValueError(reason)
        keys = self.form.nbytes(n_kv_heads * head_dim, self.group_size)
        return keys + self.form.nbytes(n_kv_heads * self.group_size, head_dim)
