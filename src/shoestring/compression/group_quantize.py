"""Weights stored as k-bit codes with a scale per group of columns."""

from dataclasses import dataclass

import torch
from torch import nn

from shoestring.compression.calibration import Calibration
from shoestring.compression.recipe import ModuleRecipe
from shoestring.compression.weight_matrix import is_embedding, is_linear, weight_matrix
from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear, PackedWeight
from shoestring.numbers.affine_fit import fit_least_squares
from shoestring.numbers.grouped_affine import GroupedAffine, ZeroPoint


@dataclass(frozen=True)
class PackedRecipe(ModuleRecipe):
    """Common part of the recipes that store a weight in a `GroupedAffine` format; see its fields."""

    bits: int = 4
    group_size: int = 32
    zero_point: ZeroPoint = ZeroPoint.SYMMETRIC
    scale_bits: int = 16

    def __post_init__(self) -> None:
        _ = self.form

    @property
    def form(self) -> GroupedAffine:
        """The storage format."""
        return GroupedAffine(self.bits, self.group_size, self.zero_point, self.scale_bits)

    def why_not(self, name: str, module: nn.Module) -> str | None:
        return super().why_not(name, module) or self.form.why_not(name, weight_matrix(module).shape[1])

    def matrix_bytes(self, rows: int, cols: int) -> int:
        return self.form.nbytes(rows, cols)

    def why_not_tied(self, name: str, others: list[str]) -> str | None:
        return None

    def rewrite_tied(self, module: nn.Module, rewritten: nn.Module) -> nn.Module:
        return packed_module(module, rewritten.packed)  # type: ignore[arg-type]


@dataclass(frozen=True)
class RoundToNearest(PackedRecipe):
    """Every weight goes to its nearest code; scales and zeros have the least squared error of the weights."""

    def rewrite(self, name: str, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        if reason := self.why_not(name, module):
            raise ValueError(reason)
        weight = weight_matrix(module)
        with torch.no_grad():
            grid = fit_least_squares(self.form, weight, name=name)
            codes = self.form.encode(weight, grid)
        return packed_module(module, PackedWeight.of(self.form, codes, grid, weight.dtype))


def packed_module(module: nn.Module, packed: PackedWeight) -> nn.Module:
    """The packed counterpart of a linear layer or an embedding, with its bias."""
    if is_embedding(module):
        return PackedEmbedding(packed, module.padding_idx)  # type: ignore[arg-type]
    assert is_linear(module)
    return PackedLinear(packed, module.bias)  # type: ignore[arg-type]
