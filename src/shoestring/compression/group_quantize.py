"""Weights stored as k-bit codes with a scale per group of columns: rounded plainly, or by GPTQ."""

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from shoestring.compression.calibration import Calibration, Moments
from shoestring.compression.error_compensation import (
    DAMPING,
    CompensationOrder,
    columns_by_activation,
    compensate,
    prepare_compensation,
)
from shoestring.compression.recipe import ModuleRecipe, Needs
from shoestring.compression.weight_matrix import is_embedding, is_linear, row_scale, weight_matrix
from shoestring.kernels.grouped_rounding import fit_groups
from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear, PackedWeight
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

    def matrix_bytes(self, rows: int, cols: int, itemsize: int) -> int:
        return self.form.nbytes(rows, cols)

    def why_not_tied(self, name: str, others: list[str]) -> str | None:
        return None

    def rewrite_tied(self, module: nn.Module, rewritten: nn.Module) -> nn.Module:
        return packed_module(module, rewritten.packed)  # type: ignore[arg-type]

    def tie(self, owner: nn.Module, others: list[nn.Module]) -> None:
        for module in others:
            module.borrow()  # type: ignore[operator]


@dataclass(frozen=True)
class RoundToNearest(PackedRecipe):
    """Every weight goes to its nearest code; scales and zeros have the least squared error of the weights."""

    def rewrite(self, name: str, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        if reason := self.why_not(name, module):
            raise ValueError(reason)
        weight = weight_matrix(module)
        with torch.no_grad():
            grid = fit_groups(self.form, weight, name=name)
            codes = self.form.encode(weight, grid)
        return packed_module(module, PackedWeight.of(self.form, codes, grid, weight.dtype))


@dataclass(frozen=True)
class GPTQ(PackedRecipe):
    """Columns are rounded one by one and each error is absorbed by the rest; see `error_compensation`.

    damping: added to the diagonal of the second moment, in units of its mean.
    Source: Frantar et al. 2023, "GPTQ", algorithm 1; groups with the largest inputs are rounded first.
    """

    needs: ClassVar[Needs] = Needs.CALIBRATION
    damping: float = DAMPING

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.damping < 0:
            raise ValueError(
                f"damping={self.damping} would make the second moment indefinite; use 0 or more."
            )

    def timing_twin(self) -> ModuleRecipe:
        return RoundToNearest(self.bits, self.group_size, self.zero_point, self.scale_bits)

    def why_not_alone(self, name: str, module: nn.Module) -> str | None:
        if is_embedding(module):
            return f"{name!r} is an embedding: its rows have no inputs to compensate for; use RoundToNearest."
        return None

    def rewrite(self, name: str, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        if reason := self.why_not(name, module) or self.why_not_alone(name, module):
            raise ValueError(reason)
        if calibration is None:
            raise ValueError(f"{name!r} has no calibration, which GPTQ needs; capture it first.")
        weight = weight_matrix(module)
        with torch.no_grad():
            prepared = _prepared(
                calibration.of(name), calibration.of(name).count, self.group_size, self.damping
            )
            codes, grid = compensate(self.form, weight, prepared, name)
        return packed_module(module, PackedWeight.of(self.form, codes, grid, weight.dtype))


@functools.lru_cache(maxsize=4)
def _prepared(moments: Moments, count: int, group_size: int, damping: float) -> CompensationOrder:
    """The factorised second moment, kept for the other layers and formats that share it.

    `count` is part of the key: the same object with more tokens is another moment.
    """
    moment = moments.second_moment
    return prepare_compensation(moment, columns_by_activation(moment, group_size), damping)


def packed_module(module: nn.Module, packed: PackedWeight) -> nn.Module:
    """The packed counterpart of a linear layer or an embedding, with its bias."""
    if is_embedding(module):
        return PackedEmbedding(packed, module.padding_idx, row_scale(module))  # type: ignore[arg-type]
    assert is_linear(module)
    return PackedLinear(packed, module.bias)  # type: ignore[arg-type]
