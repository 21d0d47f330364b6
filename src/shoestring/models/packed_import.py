"""Matrices that AWQ and GPTQ checkpoints store in 32-bit words, as packed weights: the same codes and scales.

Both store w = s·(q − z) for (inputs, outputs). AWQ packs eight outputs into a word, output 0, 2, 4, 6, 1, 3,
5, 7 from its low end up. GPTQ packs inputs one after the other down a column, and its first format stores
zero points less one; `g_idx` names the group of each input.

Source: the formats as written by AutoAWQ ("gemm") and by AutoGPTQ and GPTQModel ("gptq", "gptq_v2").
"""

import torch
from jaxtyping import Int, Shaped, UInt8
from torch import Tensor

from shoestring.layers.packed_linear import PackedWeight
from shoestring.numbers.grouped_affine import GroupedAffine, ZeroPoint
from shoestring.numbers.packing import pack_bits, unpack_bits

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight outputs each nibble of a word holds, from the lowest."""
AWQ_BITS = 4


def awq_weight(
    qweight: Int[Tensor, "inputs words"],
    qzeros: Int[Tensor, "groups words"],
    scales: Shaped[Tensor, "groups outputs"],
) -> PackedWeight:
    """The matrix of an AWQ layer. Raises: ValueError as `_form` does."""
    form = _form(AWQ_BITS, qweight.shape[0], scales)
    codes, zeros = _awq_codes(qweight), _awq_codes(qzeros)
    stored = {"codes": pack_bits(codes.T, AWQ_BITS), "zeros": pack_bits(zeros.T, AWQ_BITS)}
    return _packed(form, qweight.shape[0], scales, stored)


def gptq_weight(
    qweight: Int[Tensor, "words outputs"],
    qzeros: Int[Tensor, "groups words2"],
    scales: Shaped[Tensor, "groups outputs"],
    bits: int,
    *,
    zeros_less_one: bool,
    order: Int[Tensor, " inputs"] | None = None,
) -> PackedWeight:
    """The matrix of a GPTQ layer; with an order, its columns rearranged so that groups are contiguous.

    zeros_less_one: as the first format stores them, modulo 2^bits. Raises: ValueError as `_form` does.
    """
    inputs, outputs = qweight.shape[0] * 32 // bits, qweight.shape[1]
    form = _form(bits, inputs, scales)
    # Words of 32 bits, low end first, are the little-endian stream in which codes are kept here.
    codes = _as_bytes(qweight.T)
    if order is not None:
        codes = pack_bits(unpack_bits(codes, bits, inputs)[:, order.long()], bits)
    zeros = unpack_bits(_as_bytes(qzeros), bits, outputs)
    if zeros_less_one:
        zeros = (zeros + 1) & ((1 << bits) - 1)
    return _packed(form, inputs, scales, {"codes": codes, "zeros": pack_bits(zeros.T, bits)})


def order_of_groups(g_idx: Int[Tensor, " inputs"], groups: int, name: str) -> Int[Tensor, " inputs"] | None:
    """The inputs sorted by group; None where they are so already.

    Raises: ValueError for groups that are not there or of unequal size.
    """
    counts = torch.bincount(g_idx.long().clamp(min=0), minlength=groups)
    if int(g_idx.min()) < 0 or len(counts) != groups or int(counts.min()) != int(counts.max()):
        raise ValueError(
            f"{name!r} gives its {groups} groups {sorted(set(counts.tolist()))} inputs; they must be of one "
            "size."
        )
    order = torch.argsort(g_idx.long(), stable=True)
    return None if torch.equal(order, torch.arange(len(order))) else order.to(torch.int32)


def _form(bits: int, inputs: int, scales: Tensor) -> GroupedAffine:
    """The format of a matrix. Raises: ValueError for scales that are no float16, not finite, or not of whole
    groups of inputs."""
    if scales.dtype != torch.float16:
        raise ValueError(
            f"scales are {scales.dtype}; float16 is what these formats store (others may exceed its 65504): "
            "convert them with scales.half() and check that they stay finite."
        )
    if not bool(torch.isfinite(scales).all()):
        raise ValueError("scales hold NaN or infinity: they overflowed float16; quantise the layer anew.")
    groups = scales.shape[0]
    if groups == 0 or inputs % groups:
        raise ValueError(f"{inputs} input features are not {groups} whole groups; one row of scales each.")
    return GroupedAffine(bits, inputs // groups, ZeroPoint.INTEGER)


def _packed(form: GroupedAffine, inputs: int, scales: Tensor, stored: dict[str, Tensor]) -> PackedWeight:
    packed = PackedWeight(form, scales.shape[1], inputs, device="meta")
    for name, tensor in (stored | {"scales": scales.T.contiguous()}).items():
        setattr(packed, name, tensor.contiguous())
    return packed


def _awq_codes(words: Int[Tensor, "rows words"]) -> UInt8[Tensor, "rows outputs"]:
    nibbles = unpack_bits(_as_bytes(words), AWQ_BITS, 8 * words.shape[1]).view(len(words), -1, 8)
    place = torch.tensor(AWQ_ORDER).argsort()
    return nibbles[..., place].flatten(1)


def _as_bytes(words: Int[Tensor, "rows words"]) -> UInt8[Tensor, "rows bytes"]:
    return words.contiguous().view(torch.uint8)
