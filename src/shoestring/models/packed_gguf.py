"""Quantised tensors of a GGUF file as packed weights: the same codes and scales, not decoded.

Source: ggml's block layouts. 32 weights of a row share a float16 scale, and in Q4_1 and Q5_1 a float16 offset
after it; then the codes: of 4 bits, weight i in the low half of byte i and weight i + 16 in the high half, of
5 bits likewise after a mask of the fifth bits, of 8 bits as signed bytes.
"""

from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from shoestring.layers.packed_linear import PackedWeight
from shoestring.models.gguf_file import GGUFFile
from shoestring.numbers.grouped_affine import AffineGrid, GroupedAffine, ZeroPoint

_BLOCK = 32
_ROWS_AT_ONCE = 4096
_Kind = gguf.GGMLQuantizationType


@dataclass(frozen=True)
class _Layout:
    bits: int
    zero_point: ZeroPoint

    @property
    def form(self) -> GroupedAffine:
        return GroupedAffine(self.bits, _BLOCK, self.zero_point)


_LAYOUTS = {
    _Kind.Q4_0: _Layout(4, ZeroPoint.SYMMETRIC),
    _Kind.Q4_1: _Layout(4, ZeroPoint.REAL),
    _Kind.Q5_0: _Layout(5, ZeroPoint.SYMMETRIC),
    _Kind.Q5_1: _Layout(5, ZeroPoint.REAL),
    _Kind.Q8_0: _Layout(8, ZeroPoint.SYMMETRIC),
}


def can_stay_packed(file: GGUFFile, name: str) -> bool:
    """Whether a tensor is a matrix of a kind that `packed_weight` knows."""
    stored = file.tensors[name]
    return stored.kind in _LAYOUTS and len(stored.shape) == 2


def packed_weight(file: GGUFFile, name: str, rows: Tensor | None = None) -> PackedWeight:
    """A quantised matrix of a GGUF file, packed; it is read when it is first needed.

    rows: in which order, by default that of the file.

    Raises: ValueError for a tensor that `can_stay_packed` denies.
    """
    if not can_stay_packed(file, name):
        raise ValueError(f"{name!r} is no matrix of one of the kinds {', '.join(k.name for k in _LAYOUTS)}.")
    stored = file.tensors[name]
    form = _LAYOUTS[stored.kind].form
    n_rows, cols = stored.shape
    return PackedWeight.read_later(form, (n_rows, cols), _InFile(file, name, rows))


@dataclass(frozen=True)
class _InFile:
    """The stored tensors of a matrix that nobody has read yet; order: which row of the file is which."""

    file: GGUFFile
    name: str
    order: Tensor | None

    def __deepcopy__(self, memo: dict[int, Any]) -> "_InFile":
        return self

    def unpack(self, form: GroupedAffine, rows: slice | Tensor = slice(None)) -> dict[str, Tensor]:
        """The stored tensors of some rows, read a few thousand rows at a time."""
        blocks = self.file.blocks(self.name)
        order = torch.arange(len(blocks)) if self.order is None else self.order
        parts: dict[str, list[Tensor]] = {}
        for ids in order[rows].split(_ROWS_AT_ONCE):
            for key, part in _stored(blocks[ids.numpy()], form).items():
                parts.setdefault(key, []).append(part)
        return {key: torch.cat(pieces) for key, pieces in parts.items()}


def _stored(blocks: np.ndarray, form: GroupedAffine) -> dict[str, Tensor]:
    """The tensors of `form` that some rows of blocks stand for."""
    has_offset = form.zero_point is ZeroPoint.REAL
    head = 4 if has_offset else 2
    codes_bytes = _BLOCK if form.bits == 8 else _BLOCK // 2 + (4 if form.bits == 5 else 0)
    cut = torch.from_numpy(np.array(blocks)).reshape(len(blocks), -1, head + codes_bytes)
    halves = cut[..., :head].contiguous().view(torch.float16)
    nothing = torch.zeros(halves.shape[:2])
    grid = AffineGrid(halves[..., 0].float(), nothing, halves[..., 1].float() if has_offset else nothing)
    return form.store(_codes(cut[..., head:], form.bits).flatten(1), grid)


def _codes(stored: UInt8[Tensor, "rows groups bytes"], bits: int) -> UInt8[Tensor, "rows groups 32"]:
    if bits == 8:
        return stored ^ 0x80  # two's complement to q + 128
    low = stored[..., -_BLOCK // 2 :]
    codes = torch.cat([low & 0x0F, low >> 4], -1)
    if bits == 5:
        mask = stored[..., :4, None] >> torch.arange(8, dtype=torch.uint8)
        codes = codes | (mask & 1).flatten(-2) << 4
    return codes
