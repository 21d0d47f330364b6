"""How GGUF stores a quantised matrix, block by block, and the packed form that holds the same codes.

A block is 32 weights of a row with a float16 scale, or, in a K-quant, 256 of them (a superblock): a float16
scale for all, and for every 16 or 32 a whole number that multiplies it. The products of the two are exact in
float32. Codes lie in planes of their low and their high bits.

Source: ggml's block layouts (ggml-common.h); checked against the decoders of the `gguf` package.
"""

from collections.abc import Callable
from dataclasses import dataclass

import gguf
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from shoestring.numbers.grouped_affine import AffineGrid, GroupedAffine, ZeroPoint

_Kind = gguf.GGMLQuantizationType

Blocks = UInt8[Tensor, "rows blocks bytes"]
Cut = UInt8[Tensor, "rows blocks _"]
Groups = Float[Tensor, "rows groups"]
Read = tuple[UInt8[Tensor, "rows cols"], Groups, Groups | None]
"""Codes, a scale for every group, and an offset where there is one."""


@dataclass(frozen=True)
class Layout:
    """The packed form of a kind, the bytes of its blocks, and how their parts are read."""

    form: GroupedAffine
    block_bytes: int
    parts: Callable[[Blocks], Read]

    def read(self, rows: UInt8[Tensor, "rows bytes"]) -> dict[str, Tensor]:
        """The stored tensors of `form` that some rows of blocks stand for."""
        codes, scale, offset = self.parts(rows.reshape(len(rows), -1, self.block_bytes))
        nothing = torch.zeros_like(scale)
        grid = AffineGrid(scale, nothing, nothing if offset is None else offset)
        return self.form.store(codes, grid)


def _read_legacy(bits: int, has_offset: bool) -> Callable[[Blocks], Read]:
    """Q4_0 to Q8_0: scale, offset, a mask of fifth bits, codes."""

    def read(blocks: Blocks) -> Read:
        head = 4 if has_offset else 2
        stored = blocks[..., head:]
        if bits == 8:
            codes = stored ^ 0x80  # two's complement to q + 128
        else:
            codes = _planes(stored[..., -16:], 16, 4)
            if bits == 5:
                mask = stored[..., :4, None] >> torch.arange(8, dtype=torch.uint8)
                codes = codes | (mask & 1).flatten(-2) << 4
        offset = _halves(blocks[..., 2:4]) if has_offset else None
        return (
            codes.flatten(1),
            _halves(blocks[..., :2]).flatten(1),
            None if offset is None else offset.flatten(1),
        )

    return read


def _read_q2_k(blocks: Blocks) -> Read:
    steps, stored, halves = blocks.split([16, 64, 4], -1)
    scale, lowest = _halves(halves[..., :2]), _halves(halves[..., 2:])
    offset = -(lowest * (steps >> 4))
    return _planes(stored, 32, 2).flatten(1), (scale * (steps & 15)).flatten(1), offset.flatten(1)


def _read_q3_k(blocks: Blocks) -> Read:
    high, low, steps, halves = blocks.split([32, 64, 12, 2], -1)
    codes = _planes(low, 32, 2) | _planes(high, 32, 1) << 2
    step = _planes(steps[..., :8], 8, 4) | _planes(steps[..., 8:], 4, 2) << 4
    return codes.flatten(1), (_halves(halves) * (step.float() - 32)).flatten(1), None


def _read_q4_k(blocks: Blocks) -> Read:
    halves, steps, stored = blocks.split([4, 12, 128], -1)
    return _planes(stored, 32, 4).flatten(1), *_two_level(halves, steps)


def _read_q5_k(blocks: Blocks) -> Read:
    halves, steps, high, low = blocks.split([4, 12, 32, 128], -1)
    return (_planes(low, 32, 4) | _planes(high, 32, 1) << 4).flatten(1), *_two_level(halves, steps)


def _read_q6_k(blocks: Blocks) -> Read:
    low, high, steps, halves = blocks.split([128, 64, 16, 2], -1)
    codes = _planes(low, 64, 4) | _planes(high, 32, 2) << 4
    return codes.flatten(1), (_halves(halves) * steps.view(torch.int8)).flatten(1), None


def _planes(stored: Blocks, run: int, bits: int) -> UInt8[Tensor, "rows blocks codes"]:
    """Codes of `bits` bits: of every run of bytes first all lowest parts, then all next ones."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)[:, None]
    runs = stored.unflatten(-1, (-1, 1, run))
    return (runs >> shifts & (1 << bits) - 1).flatten(-3)


def _halves(stored: Blocks) -> Float[Tensor, "rows blocks n"]:
    return stored.contiguous().view(torch.float16).float()


def _two_level(
    halves: UInt8[Tensor, "rows blocks 4"], steps: UInt8[Tensor, "rows blocks 12"]
) -> tuple[Groups, Groups]:
    """Scales and offsets of the eight groups of Q4_K and Q5_K, whose steps have 6 bits each: those of the
    first four groups lie whole in 4 + 4 bytes, those of the others as low halves in the last four bytes, and
    as high two bits on top of the first ones.
    """
    first, second, low = steps.split(4, -1)
    step = torch.cat([first & 63, low & 15 | first >> 6 << 4], -1)
    lowest = torch.cat([second & 63, low >> 4 | second >> 6 << 4], -1)
    scale, offset = _halves(halves[..., :2]) * step, -(_halves(halves[..., 2:]) * lowest)
    return scale.flatten(1), offset.flatten(1)


def _legacy(bits: int, zero_point: ZeroPoint) -> Layout:
    has_offset = zero_point is ZeroPoint.REAL
    n_bytes = (4 if has_offset else 2) + 4 * bits
    return Layout(GroupedAffine(bits, 32, zero_point), n_bytes, _read_legacy(bits, has_offset))


LAYOUTS = {
    _Kind.Q4_0: _legacy(4, ZeroPoint.SYMMETRIC),
    _Kind.Q4_1: _legacy(4, ZeroPoint.REAL),
    _Kind.Q5_0: _legacy(5, ZeroPoint.SYMMETRIC),
    _Kind.Q5_1: _legacy(5, ZeroPoint.REAL),
    _Kind.Q8_0: _legacy(8, ZeroPoint.SYMMETRIC),
    _Kind.Q2_K: Layout(GroupedAffine(2, 16, ZeroPoint.REAL, 32), 84, _read_q2_k),
    _Kind.Q3_K: Layout(GroupedAffine(3, 16, ZeroPoint.SYMMETRIC, 32), 110, _read_q3_k),
    _Kind.Q4_K: Layout(GroupedAffine(4, 32, ZeroPoint.REAL, 32), 144, _read_q4_k),
    _Kind.Q5_K: Layout(GroupedAffine(5, 32, ZeroPoint.REAL, 32), 176, _read_q5_k),
    _Kind.Q6_K: Layout(GroupedAffine(6, 16, ZeroPoint.SYMMETRIC, 32), 210, _read_q6_k),
}
"""The kinds whose matrices can stay packed."""
