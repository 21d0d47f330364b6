"""The matrix that remembers a signal as a series of Legendre polynomials, as diagonal plus low rank.

Everything is in float64: the matrix itself is so far from normal that its own eigenvectors lose a digit with
each few states. A + p p^T is normal, and that is what is diagonalised.

Source: Gu et al. 2020, "HiPPO: Recurrent Memory with Optimal Polynomial Projections" (LegS); Gu et al. 2021,
"Efficiently Modeling Long Sequences with Structured State Spaces", theorem 1 and appendix C.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor


@dataclass(frozen=True)
class DiagonalPlusLowRank:
    """x' = (diag(poles) - P P^*) x + B u in coordinates that come in conjugate pairs, of which one is kept.

    A sum over the kept half stands for twice its real part. `vectors`, if known, has the columns V that bring
    a state back to the coordinates it had before: V x + its conjugate.
    """

    poles: Complex[Tensor, " half"]
    low_rank: Complex[Tensor, " half"]
    input: Complex[Tensor, " half"]
    vectors: Complex[Tensor, "n half"] | None = None

    @property
    def d_state(self) -> int:
        """Real numbers in a state: twice the poles that are kept."""
        return 2 * len(self.poles)


def hippo_legs(d_state: int) -> tuple[Float[Tensor, "n n"], Float[Tensor, " n"]]:
    """A and B of HiPPO-LegS, float64.

    A[n, j] is -sqrt(2n + 1) sqrt(2j + 1) below the diagonal and -(n + 1) on it; B[n] = sqrt(2n + 1).
    Raises: ValueError for d_state < 1.
    """
    if d_state < 1:
        raise ValueError(f"d_state={d_state} must be at least 1")
    root = (2 * torch.arange(d_state, dtype=torch.float64) + 1).sqrt()
    diagonal = torch.arange(1, d_state + 1, dtype=torch.float64)
    return -torch.outer(root, root).tril(-1) - torch.diag(diagonal), root


def dplr_legs(d_state: int) -> DiagonalPlusLowRank:
    """HiPPO-LegS as diagonal plus low rank, complex128, the poles of positive imaginary part in rising order.

    The phase of an eigenvector is arbitrary; here it is turned so that P is real and positive, and then so is
    B = sqrt(2) P. Raises: ValueError for an odd or empty d_state.
    """
    check_d_state(d_state)
    a, b = hippo_legs(d_state)
    p = (torch.arange(d_state, dtype=torch.float64) + 0.5).sqrt()
    skew = a + torch.outer(p, p) + 0.5 * torch.eye(d_state, dtype=torch.float64)
    frequencies, vectors = torch.linalg.eigh(-1j * skew)
    frequencies, vectors = frequencies[d_state // 2 :], vectors[:, d_state // 2 :]
    low_rank = vectors.mH @ p.to(vectors.dtype)
    vectors = vectors * (low_rank / low_rank.abs())
    poles = torch.complex(torch.full_like(frequencies, -0.5), frequencies)
    return DiagonalPlusLowRank(
        poles, vectors.mH @ p.to(vectors.dtype), vectors.mH @ b.to(vectors.dtype), vectors
    )


def random_dplr(d_state: int, generator: torch.Generator | None = None) -> DiagonalPlusLowRank:
    """A stable matrix that remembers nothing in particular: the control for HiPPO.

    Real part -1/2 as HiPPO has it, the rest Gaussian, a skew-symmetric matrix of unit variance and P, B of
    unit variance. Source: Gu et al. 2021, section 4.4 (the ablation; the variances are ours). Raises:
    ValueError for an odd or empty d_state.
    """
    check_d_state(d_state)
    gaussian = torch.randn(d_state, d_state, dtype=torch.float64, generator=generator)
    frequencies = torch.linalg.eigvalsh(-1j * (gaussian - gaussian.T) / math.sqrt(2))[d_state // 2 :]
    low_rank, b = torch.randn(2, d_state // 2, dtype=torch.complex128, generator=generator)
    return DiagonalPlusLowRank(
        torch.complex(torch.full_like(frequencies, -0.5), frequencies),
        low_rank / math.sqrt(2),
        b / math.sqrt(2),
    )


def diagonal_linear(d_state: int) -> DiagonalPlusLowRank:
    """Poles -1/2 + i pi n with B = 1 and no low rank part ("S4D-Lin").

    Source: Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State Space Models",
    section 4. Raises: ValueError for an odd or empty d_state.
    """
    check_d_state(d_state)
    frequencies = math.pi * torch.arange(d_state // 2, dtype=torch.float64)
    ones = torch.ones(d_state // 2, dtype=torch.complex128)
    return DiagonalPlusLowRank(torch.complex(-0.5 * ones.real, frequencies), torch.zeros_like(ones), ones)


def diagonal_legs(d_state: int) -> DiagonalPlusLowRank:
    """The poles and input of HiPPO-LegS with its low rank part left out ("S4D-LegS").

    Source and errors: as `diagonal_linear`.
    """
    legs = dplr_legs(d_state)
    return DiagonalPlusLowRank(legs.poles, torch.zeros_like(legs.low_rank), legs.input)


def check_d_state(d_state: int) -> None:
    """Raises: ValueError unless the states come in pairs."""
    if d_state < 2 or d_state % 2:
        raise ValueError(
            f"d_state={d_state} must be even and at least 2; use {max(2, d_state + d_state % 2)}"
        )
