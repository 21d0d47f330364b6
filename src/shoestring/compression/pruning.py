"""Pruning without structure: which weights of a matrix go, and what the rest becomes.

The rest is stored as a bitmap and its values (`SparseLinear`). `prune_in_place` makes the same choice in the
dense model, for tuning before it is stored.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from shoestring.compression.apply import plan, slots
from shoestring.compression.calibration import Calibration
from shoestring.compression.error_compensation import DAMPING, columns_as_they_are, prepare_compensation
from shoestring.compression.recipe import ModuleRecipe, Needs, Recipe
from shoestring.compression.weight_matrix import is_embedding, weight_matrix
from shoestring.layers.sparse_linear import SparseLinear
from shoestring.numbers.bitmap_matrix import BitmapMatrix, bitmap_bytes
from shoestring.numbers.sparse_values import ValueKind

Kept = Bool[Tensor, "rows cols"]


@dataclass(frozen=True)
class PruneRecipe(ModuleRecipe):
    """Common part: sparsity is the share of each matrix that goes, values how the rest is stored.

    Raises: ValueError for a sparsity outside 0 .. 1.
    """

    sparsity: float | int = 0.5
    values: ValueKind = ValueKind.BFLOAT16

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity <= 1:
            raise ValueError(f"sparsity={self.sparsity} must lie between 0 and 1, e.g. 0.5.")

    def why_not(self, name: str, module: nn.Module) -> str | None:
        if reason := super().why_not(name, module):
            return reason
        if is_embedding(module):
            return f"{name!r} is an embedding; pruning is for linear layers."
        return None

    def kept_count(self, rows: int, cols: int) -> int:
        """How many weights of a (rows, cols) matrix stay."""
        return rows * cols - round(self.sparsity * rows * cols)

    def matrix_bytes(self, rows: int, cols: int, itemsize: int) -> int:
        return bitmap_bytes(rows, cols, self.kept_count(rows, cols), self.values)

    def timing_twin(self) -> ModuleRecipe:
        return MagnitudePrune(self.sparsity, self.values)

    @abstractmethod
    def prune(
        self, name: str, weight: Float[Tensor, "rows cols"], calibration: Calibration | None
    ) -> tuple[Float[Tensor, "rows cols"], Kept]:
        """The weights as they become in float32, and which of them stay."""

    def rewrite(self, name: str, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        if reason := self.why_not(name, module):
            raise ValueError(reason)
        with torch.no_grad():
            weight, kept = self.prune(name, weight_matrix(module).float(), calibration)
            matrix = BitmapMatrix.from_dense(weight, self.values, kept)
        return SparseLinear.of(matrix, cast(Tensor | None, module.bias))


@dataclass(frozen=True)
class MagnitudePrune(PruneRecipe):
    """The smallest weights of the matrix go."""

    def prune(
        self, name: str, weight: Float[Tensor, "rows cols"], calibration: Calibration | None
    ) -> tuple[Float[Tensor, "rows cols"], Kept]:
        kept = largest(weight.abs().reshape(1, -1), self.kept_count(*weight.shape))
        return weight, kept.reshape(weight.shape)


@dataclass(frozen=True)
class Wanda(PruneRecipe):
    """In every row those weights go whose |w| · ‖x‖₂ is smallest, x being the inputs they multiply.

    Source: Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models", equation 1.
    """

    needs: ClassVar[Needs] = Needs.CALIBRATION

    def kept_count(self, rows: int, cols: int) -> int:
        return rows * (cols - round(self.sparsity * cols))

    def prune(
        self, name: str, weight: Float[Tensor, "rows cols"], calibration: Calibration | None
    ) -> tuple[Float[Tensor, "rows cols"], Kept]:
        norm = _moment(self, name, calibration).diagonal().sqrt()
        cols = weight.shape[1]
        return weight, largest(weight.abs() * norm, cols - round(self.sparsity * cols))


@dataclass(frozen=True)
class SparseGPT(PruneRecipe):
    """Columns are pruned one by one and each error is absorbed by the rest; see `error_compensation`.

    In each block of `block_columns` those weights go whose w² / [H⁻¹]ⱼⱼ is smallest, all rows together.
    damping: added to the diagonal of the second moment H, in units of its mean.

    Source: Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
    One-Shot", algorithm 1.
    """

    needs: ClassVar[Needs] = Needs.CALIBRATION
    damping: float = DAMPING
    block_columns: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_columns < 1:
            raise ValueError(f"block_columns={self.block_columns} must be 1 or more.")

    def kept_count(self, rows: int, cols: int) -> int:
        return sum(self._kept_of_block(rows, stop - start) for start, stop in self._blocks(cols))

    def prune(
        self, name: str, weight: Float[Tensor, "rows cols"], calibration: Calibration | None
    ) -> tuple[Float[Tensor, "rows cols"], Kept]:
        moment = _moment(self, name, calibration)
        upper = prepare_compensation(moment, columns_as_they_are(moment), self.damping).upper
        work, kept = weight.float().clone(), torch.ones_like(weight, dtype=torch.bool)
        for start, stop in self._blocks(weight.shape[1]):
            score = (work[:, start:stop] / upper.diagonal()[start:stop]).square()
            count = self._kept_of_block(len(weight), stop - start)
            kept[:, start:stop] = largest(score.reshape(1, -1), count).reshape(score.shape)
            errors = torch.zeros_like(score)
            for j in range(start, stop):
                errors[:, j - start] = torch.where(kept[:, j], 0, work[:, j]) / upper[j, j]
                work[:, j:stop].addr_(errors[:, j - start], upper[j, j:stop], alpha=-1)
            work[:, stop:].addmm_(errors, upper[start:stop, stop:], alpha=-1)
        return torch.where(kept, work, 0), kept

    def _blocks(self, cols: int) -> list[tuple[int, int]]:
        return [
            (start, min(start + self.block_columns, cols)) for start in range(0, cols, self.block_columns)
        ]

    def _kept_of_block(self, rows: int, cols: int) -> int:
        return rows * cols - round(self.sparsity * rows * cols)


@dataclass(frozen=True)
class StoreSparse(PruneRecipe):
    """What is not zero is stored, for a model that was pruned and tuned before; `sparsity` is not used.

    Beforehand `matrix_bytes` can only say what a full matrix would take; `bytes_after` counts.
    """

    sparsity: float | int = 0.0

    def bytes_after(self, module: nn.Module) -> int:
        weight, bias = weight_matrix(module), getattr(module, "bias", None)
        rows, cols = weight.shape
        stored = bitmap_bytes(rows, cols, int((weight != 0).sum()), self.values)
        return stored + (0 if bias is None else bias.nbytes)

    def prune(
        self, name: str, weight: Float[Tensor, "rows cols"], calibration: Calibration | None
    ) -> tuple[Float[Tensor, "rows cols"], Kept]:
        return weight, weight != 0


def largest(scores: Float[Tensor, "groups entries"], count: int) -> Bool[Tensor, "groups entries"]:
    """The `count` entries of each group with the largest scores."""
    chosen = scores.topk(count, dim=1, sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)


def global_magnitude(
    model: nn.Module,
    sparsity: float | int,
    *,
    values: ValueKind = ValueKind.BFLOAT16,
    ignore: Sequence[str] = ("lm_head",),
) -> dict[str, Recipe | None]:
    """A recipe for each linear layer, so that over all of them together the smallest weights go.

    Raises: ValueError for a sparsity outside 0 .. 1.
    """
    chosen = _prunable(model, ignore)
    MagnitudePrune(sparsity)  # refuses what is no sparsity
    sizes = {name: weight_matrix(module).abs().float().reshape(-1) for name, module in chosen.items()}
    everything = torch.cat(list(sizes.values()))
    going = round(sparsity * len(everything))
    if going == 0:
        return {name: MagnitudePrune(0.0, values) for name in chosen}
    threshold = everything.kthvalue(going).values
    return {
        name: MagnitudePrune((size <= threshold).double().mean().item(), values)
        for name, size in sizes.items()
    }


def prune_in_place(
    model: nn.Module,
    recipe: Recipe | dict[str, Recipe | None],
    *,
    calibration: Calibration | None = None,
    ignore: Sequence[str] = ("lm_head",),
) -> dict[str, Kept]:
    """Prune the dense model: what goes becomes zero, the rest is rounded as the recipe would store it.

    Returns which weights stay, by module name. Embeddings are left alone by a recipe for all.
    Raises: ValueError for a recipe that does not prune, or as `apply`.
    """
    mapping: dict[str, Recipe | None]
    mapping = dict.fromkeys(_prunable(model, ignore), recipe) if isinstance(recipe, Recipe) else recipe
    masks = {}
    for slot, own in plan(model, mapping, ignore=ignore):
        if not isinstance(own, PruneRecipe):
            raise ValueError(f"{type(own).__name__} does not prune {slot.name!r}; give a PruneRecipe.")
        target = weight_matrix(slot.module)
        with torch.no_grad():
            weight, kept = own.prune(slot.name, target.float(), calibration)
            target.copy_(BitmapMatrix.from_dense(weight, own.values, kept).to_dense())
        masks[slot.name] = kept
    return masks


def _prunable(model: nn.Module, ignore: Sequence[str]) -> dict[str, nn.Module]:
    return {
        slot.name: slot.module
        for slot in slots(model)
        if len(slot.names) == 1
        and MagnitudePrune().why_not(slot.name, slot.module) is None
        and not any(fnmatchcase(slot.name, pattern) for pattern in ignore)
    }


def _moment(recipe: PruneRecipe, name: str, calibration: Calibration | None) -> Tensor:
    if calibration is None:
        raise ValueError(
            f"{name!r} has no calibration, which {type(recipe).__name__} needs; capture it first."
        )
    return calibration.second_moment(name)
