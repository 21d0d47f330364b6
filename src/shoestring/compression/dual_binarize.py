"""Weights as two sparse binary planes: plainly, weighted by the inputs, or with error compensation.

Source: Chen et al. 2024, "DB-LLM: Accurate Dual-Binarization for Efficient LLMs", section 3.2; the weighting
and the compensation are those of GPTQ (Frantar et al. 2023), here on these four levels.
"""

import enum
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoestring.compression.calibration import Calibration
from shoestring.compression.error_compensation import (
    BLOCK_COLUMNS,
    DAMPING,
    CompensationOrder,
    columns_by_activation,
    prepare_compensation,
)
from shoestring.compression.recipe import ModuleRecipe, Needs
from shoestring.compression.weight_matrix import is_embedding, weight_matrix
from shoestring.layers.dual_binary_linear import DualBinaryLinear, LatentDualBinaryLinear, LevelGradient
from shoestring.numbers.dual_binary import DualBinary, Levels, Planes


class Fit(enum.Enum):
    """What the levels of a group are chosen by."""

    WEIGHTS = "weights"
    """The least squared error of the weights."""
    INPUTS = "inputs"
    """The same, each column weighted by the mean square of its input."""
    COMPENSATED = "compensated"
    """Column by column, each error absorbed by the columns still to come."""


@dataclass(frozen=True)
class DualBinarize(ModuleRecipe):
    """ŵ = a₁·b₁ + a₂·b₂ with b₁, b₂ in {0, 1} and a₁, a₂ per group: 2.5 bits at 64, 2.25 at 128.

    For linear layers; embeddings and heads do not survive two bits in small models.
    """

    group_size: int = 64
    fit: Fit = Fit.COMPENSATED

    def __post_init__(self) -> None:
        _ = self.form

    @property
    def form(self) -> DualBinary:
        """The storage format."""
        return DualBinary(self.group_size)

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """Calibration, unless the weights alone decide."""
        return Needs.NOTHING if self.fit is Fit.WEIGHTS else Needs.CALIBRATION

    def timing_twin(self) -> ModuleRecipe:
        return DualBinarize(self.group_size, Fit.WEIGHTS)

    def why_not(self, name: str, module: nn.Module) -> str | None:
        if reason := super().why_not(name, module):
            return reason
        if is_embedding(module):
            return f"{name!r} is an embedding; two binary planes are for linear layers."
        return self.form.why_not(name, weight_matrix(module).shape[1])

    def matrix_bytes(self, rows: int, cols: int, itemsize: int) -> int:
        return self.form.nbytes(rows, cols)

    def rewrite(self, name: str, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        weight = self._weight(name, module)
        with torch.no_grad():
            planes, levels = self._binarize(name, weight, calibration)
        return DualBinaryLinear.of(self.form, planes, levels, module.bias, weight.dtype)  # type: ignore[arg-type]

    def latent(
        self,
        name: str,
        module: nn.Module,
        calibration: Calibration | None = None,
        *,
        gradient: LevelGradient = LevelGradient.PRIMARY,
    ) -> LatentDualBinaryLinear:
        """The trainable layer in place of `module`; levels as for the stored one, latent weights as they are.

        Raises: ValueError as `rewrite` does.
        """
        weight = self._weight(name, module)
        with torch.no_grad():
            _, levels = self._binarize(name, weight, calibration)
        bias = module.bias
        return LatentDualBinaryLinear(self.form, weight, levels, bias, gradient=gradient)  # type: ignore[arg-type]

    def _weight(self, name: str, module: nn.Module) -> Tensor:
        if reason := self.why_not(name, module):
            raise ValueError(reason)
        return weight_matrix(module)

    def _binarize(self, name: str, weight: Tensor, calibration: Calibration | None) -> tuple[Planes, Levels]:
        if self.fit is Fit.WEIGHTS:
            levels = self.form.fit(weight, name=name)
            return self.form.assign(weight.float(), levels), levels
        if calibration is None:
            raise ValueError(f"{name!r} has no calibration, which fit={self.fit.value!r} needs; capture it.")
        moment = calibration.second_moment(name).to(weight.device)
        if self.fit is Fit.INPUTS:
            levels = self.form.fit(weight, moment.diagonal(), name)
            return self.form.assign(weight.float(), levels), levels
        order = columns_by_activation(moment, self.group_size)
        return compensate_planes(self.form, weight, prepare_compensation(moment, order, DAMPING), name)


def compensate_planes(
    form: DualBinary, weight: Float[Tensor, "rows cols"], prepared: CompensationOrder, name: str = "weight"
) -> tuple[Planes, Levels]:
    """Planes and levels of a matrix, rounded column by column with error compensation; deterministic.

    The levels of a group are fitted to the compensated weights when its first column is reached.
    """
    order, upper = prepared.order, prepared.upper
    rows, cols = weight.shape
    work = weight.float()[:, order].contiguous()
    importance = upper.diagonal().square().reciprocal()
    levels = torch.zeros(rows, form.groups(cols), 2)
    chosen = torch.zeros(2, rows, cols, dtype=torch.bool)
    column_form = DualBinary(1)
    block = max(BLOCK_COLUMNS // form.group_size, 1) * form.group_size
    for start in range(0, cols, block):
        stop = min(start + block, cols)
        errors = torch.zeros(rows, stop - start)
        for j in range(start, stop):
            if j % form.group_size == 0:
                span = slice(j, j + form.group_size)
                group = int(order[j]) // form.group_size
                levels[:, group] = form.fit(work[:, span], importance[span], name)[:, 0]
            own = levels[:, int(order[j]) // form.group_size, None]
            column = work[:, j : j + 1]
            planes = column_form.assign(column, own)
            errors[:, j - start] = ((column - column_form.decode(planes, own)) / upper[j, j])[:, 0]
            work[:, j + 1 : stop] -= torch.outer(errors[:, j - start], upper[j, j + 1 : stop])
            chosen[0, :, order[j]], chosen[1, :, order[j]] = planes[0][:, 0], planes[1][:, 0]
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    return (chosen[0], chosen[1]), levels
