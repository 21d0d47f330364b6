"""Quantised tensors of a GGUF file as packed weights: the same codes and scales, not decoded."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoestring.layers.packed_linear import PackedWeight
from shoestring.models.gguf_file import GGUFFile
from shoestring.models.gguf_layouts import LAYOUTS
from shoestring.numbers.grouped_affine import GroupedAffine

_ROWS_AT_ONCE = 4096


def can_stay_packed(file: GGUFFile, name: str) -> bool:
    """Whether a tensor is a matrix of a kind that `packed_weight` knows."""
    stored = file.tensors[name]
    return stored.kind in LAYOUTS and len(stored.shape) == 2


def packed_weight(file: GGUFFile, name: str, rows: Tensor | None = None) -> PackedWeight:
    """A quantised matrix of a GGUF file, packed; it is read when it is first needed.

    rows: in which order, by default that of the file.

    Raises: ValueError for a tensor that `can_stay_packed` denies.
    """
    if not can_stay_packed(file, name):
        raise ValueError(f"{name!r} is no matrix of one of the kinds {', '.join(k.name for k in LAYOUTS)}.")
    stored = file.tensors[name]
    form = LAYOUTS[stored.kind].form
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
        blocks, layout = self.file.blocks(self.name), LAYOUTS[self.file.tensors[self.name].kind]
        order = torch.arange(len(blocks)) if self.order is None else self.order
        parts: dict[str, list[Tensor]] = {}
        for ids in order[rows].split(_ROWS_AT_ONCE):
            for key, part in layout.read(torch.from_numpy(np.array(blocks[ids.numpy()]))).items():
                parts.setdefault(key, []).append(part)
        return {key: torch.cat(pieces) for key, pieces in parts.items()}
