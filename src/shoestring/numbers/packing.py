"""k-bit codes packed without gaps: each row starts on a byte, the first code in the lowest bits."""

import torch
from jaxtyping import UInt8
from torch import Tensor


def packed_width(count: int, bits: int) -> int:
    """Bytes that a row of `count` codes takes."""
    return -(-count * bits // 8)


def pack(codes: UInt8[Tensor, "rows cols"], bits: int) -> UInt8[Tensor, "rows width"]:
    """Pack codes below 2^bits."""
    rows, cols = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -cols % 8)).reshape(rows, -1, 8).long()
    words = torch.zeros_like(padded[..., 0])
    for i in range(8):
        words |= padded[..., i] << (bits * i)
    parts = torch.stack([(words >> (8 * i)) & 0xFF for i in range(bits)], dim=-1)
    return parts.to(torch.uint8).reshape(rows, -1)[:, : packed_width(cols, bits)].contiguous()


def unpack(packed: UInt8[Tensor, "rows width"], bits: int, count: int) -> UInt8[Tensor, "rows count"]:
    """The first `count` codes of each row."""
    rows, width = packed.shape
    padded = torch.nn.functional.pad(packed, (0, -width % bits)).reshape(rows, -1, bits).long()
    words = torch.zeros_like(padded[..., 0])
    for i in range(bits):
        words |= padded[..., i] << (8 * i)
    codes = torch.stack([(words >> (bits * i)) & ((1 << bits) - 1) for i in range(8)], dim=-1)
    return codes.to(torch.uint8).reshape(rows, -1)[:, :count]
