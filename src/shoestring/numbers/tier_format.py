"""Two widths for the keys and values of a cache: many bits for important tokens, few for the others.

Keys: a grid for each channel over the tokens of a group, as a few channels are large in every token. Values:
a grid for each token over its channels, once every channel j has been divided by c_j = √(max over tokens of
|v_tj|): x ≈ (scale · code + lowest) · c. That costs two numbers a token and one vector, where groups of
channels cost two numbers each.

Source: He et al. 2024, "ZipCache: Accurate and Efficient KV Cache Quantization with Salient Token
Identification", section 4.1 (channel-separable token-wise quantisation; keys by channel); the same authors'
"ZipVL", section 4.3 (two widths). Grids are rounded as in `token_cache_format`: nothing is off by more than
half a stored scale.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor

from shoestring.numbers.packing import packed_bytes
from shoestring.numbers.token_cache_format import GRID_BYTES, TOKEN_BITS, decode_rows, encode_rows

FEW_TOKENS = 32
"""Channels of keys over fewer tokens than these have no grid worth its bytes in 2 bits."""


@dataclass(frozen=True)
class TierFormat:
    """The widths of both tiers: 16 (in full, in the cache's type), 8, 4 or 2 bits.

    4 and 2 bits are those of ZipCache's code; that ZipVL uses them too is inferred from its compression.
    Raises: ValueError for another width, or fewer bits for the important tokens than for the others.
    """

    high_bits: int = 4
    low_bits: int = 2

    def __post_init__(self) -> None:
        for name in ("high_bits", "low_bits"):
            check_bits(getattr(self, name), name)
        if self.high_bits < self.low_bits:
            raise ValueError(
                f"high_bits={self.high_bits} are fewer than low_bits={self.low_bits}; important tokens get "
                "at least as many."
            )


def check_bits(bits: int, name: str) -> None:
    """Raises: ValueError for a width that tiers do not have."""
    if bits not in TOKEN_BITS:
        raise ValueError(f"{name}={bits} is not a width of cached keys and values; use 16, 8, 4 or 2.")


def group_bytes(bits: int, tokens: int, channels: int) -> int:
    """Bytes of the keys and values of a group, grids included; the vector c is extra (2 bytes a channel).

    bits: 8, 4 or 2."""
    keys = channels * (packed_bytes(tokens, bits) + GRID_BYTES)
    return keys + tokens * (packed_bytes(channels, bits) + GRID_BYTES)


def channel_scales(v: Float[Tensor, "tokens channels"]) -> Float16[Tensor, " channels"]:
    """c: the root of the largest size of each channel; 1 where that is 0 in float16.

    Raises: ValueError where a value is not finite or a root beyond float16."""
    if not bool(torch.isfinite(v).all()):
        raise ValueError(
            "cached values hold NaN or infinite values, which have no codes; check the model's weights."
        )
    c = v.float().abs().amax(0).sqrt().half()
    if bool(c.isinf().any()):
        raise ValueError(
            f"cached values reach {float(v.abs().max()):g}; float16 holds roots of values up to 65504² only. "
            "Use 16 bits or a model whose values are smaller."
        )
    return torch.where(c == 0, torch.ones_like(c), c)


def encode_keys(
    k: Float[Tensor, "tokens channels"], bits: int
) -> tuple[UInt8[Tensor, "channels bytes"], Float16[Tensor, "channels 2"]]:
    """Codes, a row per channel, and the grids of the channels. Raises: as `encode_rows`."""
    return encode_rows(k.T, bits, "cached keys")


def decode_keys(
    codes: UInt8[Tensor, "channels bytes"], grid: Float16[Tensor, "channels 2"], bits: int, tokens: int
) -> Float[Tensor, "tokens channels"]:
    """The keys that codes stand for, float32."""
    return decode_rows(codes, grid, bits, tokens).T


def encode_values(
    v: Float[Tensor, "tokens channels"], c: Float16[Tensor, " channels"], bits: int
) -> tuple[UInt8[Tensor, "tokens bytes"], Float16[Tensor, "tokens 2"]]:
    """Codes, a row per token, and the grids of the tokens. Raises: as `encode_rows`."""
    return encode_rows(v.float() / c.float(), bits, "cached values")


def decode_values(
    codes: UInt8[Tensor, "tokens bytes"],
    grid: Float16[Tensor, "tokens 2"],
    c: Float16[Tensor, " channels"],
    bits: int,
) -> Float[Tensor, "tokens channels"]:
    """The values that codes stand for, float32."""
    return decode_rows(codes, grid, bits, len(c)) * c.float()


def naive_values(v: Float[Tensor, "tokens channels"], bits: int) -> Float[Tensor, "tokens channels"]:
    """What values are read back as, by the equations, with grids that are not rounded."""
    c = v.abs().amax(0).sqrt()
    c = torch.where(c == 0, 1.0, c)
    shared = v / c
    lowest, highest = shared.amin(1, keepdim=True), shared.amax(1, keepdim=True)
    scale = (highest - lowest) / (2**bits - 1)
    scale = torch.where(scale == 0, 1.0, scale)
    return (((shared - lowest) / scale).round() * scale + lowest) * c


def naive_keys(k: Float[Tensor, "tokens channels"], bits: int) -> Float[Tensor, "tokens channels"]:
    """What keys are read back as, by the equations, with grids that are not rounded."""
    lowest, highest = k.amin(0), k.amax(0)
    scale = (highest - lowest) / (2**bits - 1)
    scale = torch.where(scale == 0, 1.0, scale)
    return ((k - lowest) / scale).round() * scale + lowest
