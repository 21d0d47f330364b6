"""A cached key or value in 8 or 4 bits: codes of its channels, and one float16 scale and offset of its own.

x ≈ lo + scale·q. lo is the least channel rounded down to float16, scale the span from that lo over 2^bits − 1
rounded up, and codes are taken from the stored pair: so |x − x̂| ≤ scale/2, which plain rounding of lo breaks.

Source: InternLM/lmdeploy, TurboMind's online quantisation of keys and values (per token and head).
"""

import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor

from shoestring.numbers.formats import named_format
from shoestring.numbers.rounding import round_to_format
from shoestring.numbers.rounding_bits import Rounding

TOKEN_BITS = (8, 4)
PARAMETER_BYTES = 4
"""Bytes of the scale and the offset of one token of one head."""


def check_token_bits(bits: int, name: str = "bits") -> int:
    """`bits` if there is such a code. Raises: ValueError."""
    if bits not in TOKEN_BITS:
        raise ValueError(f"{name}={bits} is not a width of cached keys and values; use 8 or 4.")
    return bits


def code_bytes(bits: int, dim: int) -> int:
    """Bytes of the codes of `dim` channels. Raises: ValueError where they do not fill whole bytes."""
    if bits == 4 and dim % 2:
        raise ValueError(f"heads of {dim} channels do not fill whole bytes in 4 bits; use 8 bits.")
    return dim * bits // 8


def encode_tokens(
    x: Float[Tensor, "*lead dim"], bits: int, name: str = "x"
) -> tuple[UInt8[Tensor, "*lead bytes"], Float16[Tensor, "*lead 2"]]:
    """Codes of the vectors along the last axis, and their (scale, lo).

    A byte of 4-bit codes holds channel 2i in its low half and channel 2i + 1 in its high half.

    Raises: ValueError if a value is not finite, or an offset or scale is beyond float16.
    """
    check_token_bits(bits)
    code_bytes(bits, x.shape[-1])
    x = x.float()
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    if not bool(torch.isfinite(high - low).all()):
        raise ValueError(f"{name} hold NaN or infinite numbers, which have no codes.")
    half = named_format("fp16")
    low = round_to_format(low, half, Rounding.DOWN)
    scale = round_to_format((high - low) / (2**bits - 1), half, Rounding.UP)
    if not bool(torch.isfinite(low).all() & torch.isfinite(scale).all()):
        raise ValueError(
            f"{name} reach {float(x.abs().max()):g}; offsets are stored in float16, up to 65504."
        )
    divisor = torch.where(scale > 0, scale, 1.0)
    codes = ((x - low) / divisor).round().clamp(0, 2**bits - 1).to(torch.uint8)
    if bits == 4:
        codes = codes[..., ::2] | (codes[..., 1::2] << 4)
    return codes, torch.cat([scale, low], -1).half()


def decode_tokens(
    codes: UInt8[Tensor, "*lead bytes"],
    parameters: Float16[Tensor, "*lead 2"],
    bits: int,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*lead dim"]:
    """What `encode_tokens` stored."""
    if bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2)
    scale, low = parameters.float().split(1, -1)
    return (codes * scale + low).to(dtype)


def naive_token_round_trip(x: Float[Tensor, " dim"], bits: int) -> Float[Tensor, " dim"]:
    """One vector, channel by channel: what the codes mean."""
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    halves = halves[torch.isfinite(halves)]
    low = halves[halves <= x.min()].max()
    scale = halves[halves >= (x.max() - low) / (2**bits - 1)].min()
    codes = [min(round(float((v - low) / scale)), 2**bits - 1) if scale else 0 for v in x]
    return torch.stack([low + scale * code for code in codes])
