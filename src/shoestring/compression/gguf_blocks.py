"""Grouped affine matrices as the blocks of GGUF, bit for bit the same weights.

Source: ggml's block layouts (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0): per 32 weights a float16 scale, a float16 offset
for the _1 kinds, then the codes; the lower half of a block lies in low nibbles, fifth bits in a mask.
"""

import gguf
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from shoestring.layers.packed_linear import PackedWeight
from shoestring.numbers.grouped_affine import GroupedAffine, ZeroPoint
from shoestring.numbers.packing import unpack_bits

BLOCK = 32
KINDS = {
    GroupedAffine(4, BLOCK, ZeroPoint.SYMMETRIC): gguf.GGMLQuantizationType.Q4_0,
    GroupedAffine(5, BLOCK, ZeroPoint.SYMMETRIC): gguf.GGMLQuantizationType.Q5_0,
    GroupedAffine(8, BLOCK, ZeroPoint.SYMMETRIC): gguf.GGMLQuantizationType.Q8_0,
    GroupedAffine(4, BLOCK, ZeroPoint.REAL): gguf.GGMLQuantizationType.Q4_1,
    GroupedAffine(5, BLOCK, ZeroPoint.REAL): gguf.GGMLQuantizationType.Q5_1,
}


def gguf_blocks(packed: PackedWeight, rows: Tensor) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    """The bytes of some rows, (rows, bytes per row), and their kind.

    Raises: ValueError if GGUF has no kind for the format.
    """
    kind = KINDS.get(packed.form)
    if kind is None:
        known = ", ".join(k.name for k in KINDS.values())
        raise ValueError(f"GGUF has no blocks for {packed.form}; it has {known} (groups of 32).")
    codes = unpack_bits(packed.codes[rows], packed.form.bits, packed.cols).reshape(len(rows), -1, BLOCK)
    parts = [_bytes(packed.get_buffer("scales")[rows])]
    if packed.form.zero_point is ZeroPoint.REAL:
        parts.append(_bytes(packed.get_buffer("offsets")[rows]))
    if packed.form.bits == 8:
        parts.append(codes ^ 0x80)  # q − 128 in two's complement
    else:
        if packed.form.bits == 5:
            parts.append(_fifth_bits(codes))
        low = codes & 0x0F
        parts.append(low[..., : BLOCK // 2] | (low[..., BLOCK // 2 :] << 4))
    return torch.cat(parts, dim=-1).reshape(len(rows), -1).cpu().numpy(), kind


def _bytes(halves: Tensor) -> UInt8[Tensor, "rows groups 2"]:
    return halves.contiguous().view(torch.uint8).reshape(*halves.shape, 2)


def _fifth_bits(codes: UInt8[Tensor, "rows groups 32"]) -> UInt8[Tensor, "rows groups 4"]:
    """Bit i of a little-endian 32-bit mask is the fifth bit of weight i."""
    bits = (codes >> 4).reshape(*codes.shape[:-1], 4, 8).int()
    return (bits << torch.arange(8, dtype=torch.int32)).sum(-1).to(torch.uint8)
