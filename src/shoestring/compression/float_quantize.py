"""Weights stored as narrow floats with a scale for each block: e4m3 by 128 x 128, or MXFP4."""

import enum
from dataclasses import dataclass

from torch import nn

from shoestring.compression.calibration import Calibration
from shoestring.compression.recipe import ModuleRecipe
from shoestring.compression.weight_matrix import is_embedding, weight_matrix
from shoestring.layers.float_coded_linear import FloatCodedLinear
from shoestring.numbers.block_float import E4M3_BLOCKS, MXFP4, BlockFloat


class StoredFloat(enum.Enum):
    """How weights are stored."""

    E4M3 = "e4m3"
    """e4m3 with a float32 scale for each block of 128 x 128: 8.002 bits a weight."""
    MXFP4 = "mxfp4"
    """e2m1 with a power of two for each 32 inputs: 4.25 bits a weight."""


_FORMS = {StoredFloat.E4M3: E4M3_BLOCKS, StoredFloat.MXFP4: MXFP4}


@dataclass(frozen=True)
class FloatQuantize(ModuleRecipe):
    """Every weight of a linear layer goes to the nearest that the format holds; nothing is calibrated."""

    stored: StoredFloat = StoredFloat.MXFP4

    @property
    def form(self) -> BlockFloat:
        """The storage format."""
        return _FORMS[self.stored]

    def why_not(self, name: str, module: nn.Module) -> str | None:
        if reason := super().why_not(name, module):
            return reason
        return self.form.why_not(name, weight_matrix(module).shape[1])

    def why_not_alone(self, name: str, module: nn.Module) -> str | None:
        if is_embedding(module):
            return f"{name!r} is an embedding; FloatQuantize stores linear layers, use RoundToNearest."
        return None

    def matrix_bytes(self, rows: int, cols: int, itemsize: int) -> int:
        return self.form.nbytes(rows, cols)

    def rewrite(self, name: str, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        if reason := self.why_not(name, module) or self.why_not_alone(name, module):
            raise ValueError(reason)
        return FloatCodedLinear.of(self.form, weight_matrix(module), module.bias, name)  # type: ignore[arg-type]
