"""R-Sparse: decode with the columns whose input is large, and a thin matrix for all the others; no training.

Source: Zhang et al. 2025, "R-Sparse: Rank-Aware Activation Sparsity for Efficient LLM Inference", section 3;
the budget follows VITA-Group/R-Sparse, with the true number of outputs of grouped-query layers.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from shoestring.compression.calibration import Calibration
from shoestring.compression.recipe import ModuleRecipe, Needs
from shoestring.compression.score_quantiles import ScoreCalibration, column_norms
from shoestring.compression.singular_factors import singular_factors
from shoestring.compression.weight_matrix import holds_matrix, is_embedding, is_linear, weight_matrix
from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear
from shoestring.layers.row_sparse_linear import EVERY_INPUT, NO_INPUT, RowSparseLinear

SUPPORTED = "nn.Linear (and transformers' Conv1D) inside the blocks of a model"


class RowStore(enum.Enum):
    """The type in which a layer's matrices are kept."""

    AS_IS = "as is"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"

    def of(self, weight: torch.dtype) -> torch.dtype:
        """The type for a weight that has this one."""
        chosen = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        return chosen.get(self.value, weight)


@dataclass(frozen=True)
class Budget:
    """What a layer may read for one token: whole columns of W, and a rank for the other inputs."""

    channels: int
    rank: int

    @classmethod
    def of(cls, outputs: int, inputs: int, sparsity: float, alpha: float) -> "Budget":
        """channels · outputs + rank · (inputs + outputs) ≈ (1 − sparsity) · outputs · inputs."""
        share = 1.0 - sparsity
        channels = max(int(inputs * share * alpha), 1)
        if alpha == 1.0:
            return cls(channels, 0)
        rank = int((inputs * outputs * share - channels * outputs) / (inputs + outputs))
        return cls(channels, max(rank, 1))


@dataclass(frozen=True)
class Split:
    """What `RowSparseLinear.split` takes."""

    threshold: float
    scales: Tensor | None = field(default=None, repr=False)
    down: Tensor | None = field(default=None, repr=False)
    up: Tensor | None = field(default=None, repr=False)

    def put(self, layer: RowSparseLinear) -> None:
        """Set a layer up so."""
        layer.split(self.threshold, self.scales, self.down, self.up)


@dataclass(frozen=True)
class RSparse(ModuleRecipe):
    """Read only a part of each weight for a token of decoding; prompts stay dense.

    sparsity: share of the reads of a weight that are saved, in [0, 1). alpha: share of what is still read
    that goes to whole columns, the rest to the low-rank path: 1 is plain magnitude sparsity, 0 low rank
    alone. store: the type of the matrices; bytes stored grow with the low-rank path, what falls is what
    decoding reads.

    Calibration is a `ScoreCalibration` (`capture_scores`).
    Raises: ValueError for numbers outside their range.
    """

    needs: ClassVar[Needs] = Needs.CALIBRATION
    sparsity: float = 0.5
    alpha: float = 1.0
    store: RowStore = RowStore.AS_IS

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity={self.sparsity} is no share of reads to save; use one in [0, 1).")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} is no share; use one from 0 (low rank) to 1 (columns).")

    def why_not(self, name: str, module: nn.Module) -> str | None:
        if reason := super().why_not(name, module):
            return f"{reason[:-1]}; R-Sparse takes {SUPPORTED}."
        if is_embedding(module):
            return f"{name!r} is an embedding; R-Sparse takes {SUPPORTED}."
        return None

    def why_not_tied(self, name: str, others: list[str]) -> str | None:
        tied = ", ".join(map(repr, others))
        return f"{name!r} shares its weight with {tied}: leave it dense. R-Sparse takes {SUPPORTED}."

    def matrix_bytes(self, rows: int, cols: int, itemsize: int) -> int:
        own = {RowStore.AS_IS: itemsize, RowStore.FLOAT32: 4, RowStore.BFLOAT16: 2}[self.store]
        rank = self._rank(rows, cols)
        return own * (rows * cols + rank * (rows + cols)) + 4 + (4 * cols if rank else 0)

    def rewrite(self, name: str, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        """Raises: TypeError for anything but a linear layer; NotImplementedError for a packed one; ValueError
        without scores of this layer.
        """
        check_target(name, module)
        if reason := self.why_not(name, module):
            raise ValueError(reason)
        weight = weight_matrix(module)
        store = self.store.of(weight.dtype)
        layer = RowSparseLinear.of(weight, cast(Any, module.bias), store).train(module.training)
        self.split(name, layer, calibration).put(layer)
        return layer

    def split(
        self,
        name: str,
        layer: RowSparseLinear,
        calibration: Calibration | None,
        factors: tuple[Tensor, Tensor] | None = None,
    ) -> Split:
        """What this recipe makes of a layer. factors: the `singular_factors` of its weight, where at hand.

        Raises: ValueError without scores of this layer.
        """
        if not isinstance(calibration, ScoreCalibration):
            kind = type(calibration).__name__
            raise ValueError(f"{name!r} needs scores, not {kind}; calibrate with `capture_scores`.")
        kept = (1.0 - self.sparsity) * self.alpha
        rank = self._rank(*layer.weight.shape)
        if rank == 0:
            dense = kept >= 1.0
            return Split(EVERY_INPUT if dense else calibration.threshold(name, kept, weighted=False))
        down, up = factors or singular_factors(layer.weight, layer.rows.dtype)
        scales = column_norms(layer.weight)
        threshold = NO_INPUT if kept == 0 else calibration.threshold(name, kept, weighted=True)
        return Split(threshold, scales, down[:, :rank], up[:rank])

    def _rank(self, rows: int, cols: int) -> int:
        most = max(rows * cols // (rows + cols), 1)
        return min(Budget.of(rows, cols, self.sparsity, self.alpha).rank, most)


def check_target(name: str, module: nn.Module) -> None:
    """Raises: NotImplementedError for packed weights; TypeError for anything but a linear layer."""
    if isinstance(module, PackedLinear | PackedEmbedding):
        raise NotImplementedError(
            f"{name!r} holds packed weights, whose rows cannot be gathered; "
            "dequantise it first, or quantise groups of rows instead of R-Sparse."
        )
    if not is_linear(module):
        raise TypeError(f"{name!r} is a {type(module).__name__}; R-Sparse takes {SUPPORTED}.")


def block_linears(model: nn.Module) -> list[str]:
    """The linear layers inside the model's blocks, in the model's order: what R-Sparse is for.

    Embeddings, norms and the head stay dense. Raises: TypeError for a model without blocks (an
    `nn.ModuleList`), or with a convolution or another kind of linear layer in them; NotImplementedError for
    packed weights.
    """
    best: list[str] = []
    for path, blocks in model.named_modules():
        if isinstance(blocks, nn.ModuleList):
            inside = [
                f"{path}.{name}"
                for name, module in blocks.named_modules()
                if holds_matrix(module)
                or isinstance(module, PackedLinear | nn.Conv1d | nn.Conv2d | nn.Conv3d | RowSparseLinear)
            ]
            best = max(best, inside, key=len)
    if not best:
        raise TypeError(f"{type(model).__name__} has no blocks of linear layers; R-Sparse takes {SUPPORTED}.")
    for name in best:
        module = model.get_submodule(name)
        if not isinstance(module, RowSparseLinear):
            check_target(name, module)
    return best


def r_sparse_recipes(
    model: nn.Module,
    sparsity: float = 0.5,
    alphas: float | Sequence[float] = 1.0,
    store: RowStore = RowStore.AS_IS,
) -> dict[str, RSparse]:
    """A recipe for each linear layer of the blocks, for `apply`.

    alphas: one for all, or one for each layer in the order of `block_linears`.
    Raises: as `block_linears` and `RSparse`; ValueError for another number of alphas, with both numbers.
    """
    names = block_linears(model)
    shares = [float(alphas)] * len(names) if isinstance(alphas, float | int) else [float(a) for a in alphas]
    if len(shares) != len(names):
        raise ValueError(
            f"{len(shares)} alphas for {len(names)} linear layers; give one for each, in the order "
            "of block_linears, or one number for all."
        )
    return {name: RSparse(sparsity, alpha, store) for name, alpha in zip(names, shares, strict=True)}
