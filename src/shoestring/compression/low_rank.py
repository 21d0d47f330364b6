"""Replace a weight matrix by two thin factors: those nearest to it, or those that change its outputs least.

Source: Eckart and Young 1936 (plain); Wang et al. 2025, "SVD-LLM: Truncation-aware Singular Value
Decomposition for Large Language Model Compression", section 3.1 (whitening by the second moment's factor).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoestring.compression.calibration import Calibration
from shoestring.compression.recipe import ModuleRecipe, Needs
from shoestring.compression.weight_matrix import is_embedding, matrix_shape, weight_matrix
from shoestring.layers.low_rank.low_rank_linear import LowRankLinear

WHITENING_DAMPING = 1e-6
"""Added to the diagonal of the second moment, in units of its mean, so that it factorises."""


@dataclass(frozen=True)
class LowRank(ModuleRecipe):
    """W ≈ B A with the least Frobenius error (truncated SVD).

    rank: an int is the rank; a float in (0, 1] is the share of the matrix's weights that are kept, so that
    0.5 halves the bytes: rank = share · rows · cols / (rows + cols), rounded down.
    """

    rank: int | float = 0.5

    def __post_init__(self) -> None:
        whole = isinstance(self.rank, int) and not isinstance(self.rank, bool)
        share = isinstance(self.rank, float) and 0 < self.rank <= 1
        if not (share or (whole and self.rank >= 1)):
            raise ValueError(f"rank={self.rank} is neither a whole rank (1, 2, …) nor a share in (0, 1].")

    def rank_of(self, rows: int, cols: int) -> int:
        """The rank that a (rows, cols) matrix is given."""
        if isinstance(self.rank, int):
            return self.rank
        return int(self.rank * rows * cols / (rows + cols))

    def why_not(self, name: str, module: nn.Module) -> str | None:
        if reason := super().why_not(name, module):
            return reason
        if is_embedding(module):
            return f"{name!r} is an embedding; low rank is for linear layers."
        rows, cols = matrix_shape(module)
        rank, limit = self.rank_of(rows, cols), (rows * cols - 1) // (rows + cols)
        if 1 <= rank <= limit:
            return None
        return (
            f"{name!r} is {rows}×{cols}: rank {rank} (rank={self.rank}) stores no less than the matrix or "
            f"nothing at all; use 1 to {limit}."
        )

    def matrix_bytes(self, rows: int, cols: int, itemsize: int) -> int:
        return self.rank_of(rows, cols) * (rows + cols) * itemsize

    def rewrite(self, name: str, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        if reason := self.why_not(name, module):
            raise ValueError(reason)
        weight = weight_matrix(module)
        with torch.no_grad():
            down, up = truncated_factors(weight.float(), self.rank_of(*weight.shape))
        return LowRankLinear.of(down.to(weight.dtype), up.to(weight.dtype), module.bias)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ActivationAwareLowRank(LowRank):
    """W ≈ B A with the least mean square change of the outputs on the calibration inputs."""

    needs: ClassVar[Needs] = Needs.CALIBRATION

    def timing_twin(self) -> ModuleRecipe:
        return LowRank(self.rank)

    def rewrite(self, name: str, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        if reason := self.why_not(name, module):
            raise ValueError(reason)
        if calibration is None:
            raise ValueError(
                f"{name!r} has no calibration, which {type(self).__name__} needs; capture it first."
            )
        weight = weight_matrix(module)
        with torch.no_grad():
            moment = calibration.second_moment(name).to(weight.device)
            down, up = whitened_factors(weight.float(), moment, self.rank_of(*weight.shape))
        return LowRankLinear.of(down.to(weight.dtype), up.to(weight.dtype), module.bias)  # type: ignore[arg-type]


def truncated_factors(
    weight: Float[Tensor, "rows cols"], rank: int
) -> tuple[Float[Tensor, "rank cols"], Float[Tensor, "rows rank"]]:
    """(A, B) with B A nearest to the weight; the singular values are shared evenly between the two."""
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


def whitened_factors(
    weight: Float[Tensor, "rows cols"], second_moment: Float[Tensor, "cols cols"], rank: int
) -> tuple[Float[Tensor, "rank cols"], Float[Tensor, "rows rank"]]:
    """(A, B) that minimise tr((W − BA) H (W − BA)ᵀ): truncate W L with H = L Lᵀ, then undo L.

    Raises: ValueError if H is no second moment.
    """
    h = second_moment.double()
    mean = h.diagonal().mean().item() or 1.0
    damping = WHITENING_DAMPING
    while damping <= 1:
        lower, failed = torch.linalg.cholesky_ex(h + torch.eye(h.shape[0], dtype=h.dtype) * damping * mean)
        if not failed:
            break
        damping *= 10
    else:
        raise ValueError("the second moment of the inputs is not positive definite; it is no E[x xᵀ].")
    down, up = truncated_factors(weight.double() @ lower, rank)
    down = torch.linalg.solve_triangular(lower, down, upper=False, left=False)
    return down.float(), up.float()


def naive_whitened_loss(
    weight: Float[Tensor, "rows cols"], second_moment: Float[Tensor, "cols cols"], rank: int
) -> float:
    """The least tr((W − Ŵ) H (W − Ŵ)ᵀ) of any Ŵ of that rank: the sum of the truncated eigenvalues of W H Wᵀ.

    Source: Wang et al. 2025, theorem 3.2.
    """
    energy = torch.linalg.eigvalsh(weight.double() @ second_moment.double() @ weight.double().T)
    return energy.sort(descending=True).values[rank:].clamp(min=0).sum().item()
