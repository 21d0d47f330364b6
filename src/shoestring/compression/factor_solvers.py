"""Ways to split a weight W (rows = outputs, cols = inputs) into B A: what `auto_fact` may be told to use.

Each gives (A, B) with A (rank, cols), the encoder, and B (rows, rank), the decoder. In the words of the
papers, which write Wᵀ ≈ E D, E = Aᵀ and D = Bᵀ.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.compression.calibration import Calibration
from shoestring.compression.low_rank import truncated_factors, whitened_factors
from shoestring.compression.matrix_factorisation import nmf_iterates, semi_nmf_iterates

Factors = tuple[Float[Tensor, "rank cols"], Float[Tensor, "rows rank"]]


@runtime_checkable
class Solver(Protocol):
    """Splits one weight. `name` is that of its module, for messages and for what is known of its inputs."""

    def factors(self, weight: Float[Tensor, "rows cols"], rank: int, name: str) -> Factors:
        """(A, B). Raises: ValueError, naming the module, for a weight that cannot be split so."""
        ...


@dataclass(frozen=True)
class RandomFactors:
    """New weights, as `LowRankLinear` draws them: for training from scratch: what is there goes."""

    seed: int = 0

    def factors(self, weight: Tensor, rank: int, name: str) -> Factors:
        generator = _generator(self.seed, weight)
        rows, cols = weight.shape
        made: dict[str, Any] = {"generator": generator, "device": weight.device, "dtype": weight.dtype}
        down = torch.randn(rank, cols, **made) * cols**-0.5
        return down, (2 * torch.rand(rows, rank, **made) - 1) * rank**-0.5


@dataclass(frozen=True)
class TruncatedSVD:
    """The nearest of its rank (Eckart and Young 1936): A holds the singular values, B is orthonormal."""

    def factors(self, weight: Tensor, rank: int, name: str) -> Factors:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        return s[:rank, None] * vh[:rank], u[:, :rank]


@dataclass(frozen=True)
class BalancedSVD:
    """The nearest of its rank, each singular value shared evenly: both factors learn alike afterwards."""

    def factors(self, weight: Tensor, rank: int, name: str) -> Factors:
        return truncated_factors(weight, rank)


@dataclass(frozen=True)
class RandomisedSVD:
    """The nearest of its rank by random projections; small ranks need 4 iterations or more.

    Source: Halko et al. 2009, "Finding Structure with Randomness", algorithm 5.1, as `torch.svd_lowrank`.
    """

    iterations: int = 10
    seed: int = 0

    def factors(self, weight: Tensor, rank: int, name: str) -> Factors:
        with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
            torch.manual_seed(self.seed)
            u, s, v = torch.svd_lowrank(weight, q=rank, niter=self.iterations)
        return s[:, None] * v.T, u


@dataclass(frozen=True)
class NMF:
    """Both factors nonnegative, for weights that are."""

    iterations: int = 10
    seed: int = 0

    def factors(self, weight: Tensor, rank: int, name: str) -> Factors:
        if (lowest := weight.min().item()) < 0:
            raise ValueError(
                f"{name!r} has negative weights (down to {lowest:.3g}), which nmf cannot express; use 'snmf' "
                "or 'svd'."
            )
        left, right = _last(nmf_iterates(weight, rank, self.iterations, _generator(self.seed, weight)))
        return right, left


@dataclass(frozen=True)
class SemiNMF:
    """Wᵀ ≈ F Gᵀ with G ≥ 0: the decoder is nonnegative, the encoder free."""

    iterations: int = 10
    seed: int = 0

    def factors(self, weight: Tensor, rank: int, name: str) -> Factors:
        f, g = _last(semi_nmf_iterates(weight.T, rank, self.iterations, _generator(self.seed, weight)))
        return f.T, g


@dataclass(frozen=True)
class ActivationAware:
    """Least mean square change of the outputs on the calibration's inputs; linear layers only.

    Source: Wang et al. 2025, "SVD-LLM", section 3.1; beyond Greenformers.
    """

    calibration: Calibration

    def factors(self, weight: Tensor, rank: int, name: str) -> Factors:
        if name not in self.calibration:
            raise ValueError(
                f"{name!r} has no calibration, which activation-aware factors need; capture it (linear "
                "layers only), or leave it out by submodules."
            )
        return whitened_factors(weight, self.calibration.second_moment(name).to(weight.device), rank)


_BY_NAME: dict[str, Callable[[int, int], Solver]] = {
    "random": lambda iterations, seed: RandomFactors(seed),
    "svd": lambda iterations, seed: TruncatedSVD(),
    "balanced": lambda iterations, seed: BalancedSVD(),
    "randomised-svd": RandomisedSVD,
    "nmf": NMF,
    "snmf": SemiNMF,
}


def solver_of(solver: str | Solver, num_iter: int = 10, seed: int = 0) -> Solver:
    """The solver of this name, or the one that is given.

    Raises: ValueError for an unknown name, or num_iter < 1.
    """
    if num_iter < 1:
        raise ValueError(f"num_iter={num_iter} must be at least 1.")
    if not isinstance(solver, str):
        return solver
    if solver not in _BY_NAME:
        known = ", ".join(map(repr, _BY_NAME))
        raise ValueError(f"solver={solver!r} is unknown; use {known}, or ActivationAware(calibration).")
    return _BY_NAME[solver](num_iter, seed)


@dataclass(frozen=True)
class EnergyRank:
    """The least rank whose singular values hold `share` of the sum of all squares.

    Raises: ValueError for a share outside (0, 1].
    """

    share: float | int

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} of the energy must be above 0 and at most 1.")

    def of(self, weight: Float[Tensor, "rows cols"]) -> int:
        """The rank that this weight needs."""
        energy = torch.linalg.svdvals(weight.double()).square().cumsum(0)
        return int((energy < self.share * energy[-1]).sum().item()) + 1


def _generator(seed: int, weight: Tensor) -> torch.Generator:
    return torch.Generator(device=weight.device).manual_seed(seed)


def _last(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    *_, last = pairs
    return last
