"""Solvers: what each promises of its factors, and that updates never make them worse."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.compression.calibration import Calibration, Moments
from shoestring.compression.error_compensation import output_loss
from shoestring.compression.factor_solvers import (
    NMF,
    ActivationAware,
    BalancedSVD,
    EnergyRank,
    RandomFactors,
    RandomisedSVD,
    SemiNMF,
    TruncatedSVD,
    solver_of,
)
from shoestring.compression.matrix_factorisation import nmf_iterates, semi_nmf_iterates

SHAPES = st.tuples(st.integers(2, 13), st.integers(2, 13))


def matrix(shape: tuple[int, int], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(weight: torch.Tensor, solver, rank: int) -> float:
    down, up = solver.factors(weight, rank, "w")
    return (weight - up @ down).norm().item()


@given(shape=SHAPES, seed=st.integers(0, 20))
def test_exact_svd_loses_the_tail_and_less_at_each_rank(shape, seed):
    weight = matrix(shape, seed)
    singular = np.linalg.svd(weight.numpy(), compute_uv=False)
    for solver in (TruncatedSVD(), BalancedSVD()):
        errors = [error(weight, solver, rank) for rank in range(1, min(shape) + 1)]
        tails = [np.sqrt((singular[rank:] ** 2).sum()) for rank in range(1, min(shape) + 1)]
        np.testing.assert_allclose(errors, tails, rtol=1e-5, atol=1e-9)
        assert all(later < earlier for earlier, later in pairwise(errors))


def test_how_singular_values_are_shared():
    weight = matrix((9, 7), 0)
    singular = torch.linalg.svdvals(weight)[:4]
    down, up = TruncatedSVD().factors(weight, 4, "w")
    torch.testing.assert_close(up.T @ up, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(down.norm(dim=1), singular)
    down, up = BalancedSVD().factors(weight, 4, "w")
    torch.testing.assert_close(down.norm(dim=1), singular.sqrt())
    torch.testing.assert_close(up.norm(dim=0), singular.sqrt())


def test_random_projections_come_near_and_are_seeded():
    weight = matrix((60, 40), 1)
    best = error(weight, TruncatedSVD(), 5)
    assert best <= error(weight, RandomisedSVD(10), 5) < 1.01 * best
    one, two = (RandomisedSVD(4, seed=3).factors(weight, 5, "w") for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


@given(shape=SHAPES, seed=st.integers(0, 9), data=st.data())
def test_semi_nmf_is_nonnegative_on_one_side_and_never_gets_worse(shape, seed, data):
    rank = data.draw(st.integers(1, min(shape)))
    a = matrix(shape, seed)
    errors = []
    for f, g in semi_nmf_iterates(a, rank, 12, torch.Generator().manual_seed(seed)):
        assert (g >= 0).all()
        errors.append((a - f @ g.T).norm().item())
    assert len(errors) == 13
    assert all(later <= earlier * (1 + 1e-9) + 1e-9 for earlier, later in pairwise(errors))
    assert errors[-1] >= error(a.T, TruncatedSVD(), rank) - 1e-9


@given(shape=SHAPES, seed=st.integers(0, 9), data=st.data())
def test_nmf_is_nonnegative_and_never_gets_worse(shape, seed, data):
    rank = data.draw(st.integers(1, min(shape)))
    a = matrix(shape, seed).abs()
    errors = []
    for left, right in nmf_iterates(a, rank, 12, torch.Generator().manual_seed(seed)):
        assert (left >= 0).all()
        assert (right >= 0).all()
        errors.append((a - left @ right).norm().item())
    assert all(later <= earlier * (1 + 1e-9) + 1e-9 for earlier, later in pairwise(errors))
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("seed", range(3))
def test_semi_nmf_lies_between_random_and_the_best(seed):
    weight = matrix((48, 32), seed)
    best, found = error(weight, TruncatedSVD(), 8), error(weight, SemiNMF(10, seed), 8)
    assert best < found < error(weight, RandomFactors(seed), 8)
    assert found < weight.norm().item()
    down, up = SemiNMF(10, seed).factors(weight, 8, "w")
    assert (up >= 0).all()
    assert (down < 0).any()


def test_known_inputs_lose_less_of_the_outputs():
    weight = matrix((12, 10), 0).float()
    x = torch.randn(90, 10, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 3, 10)
    moment = x.T @ x / 90
    solver = ActivationAware(Calibration({"layer": Moments.of(moment, x.abs().mean(0), 90)}))
    losses = []
    for down, up in (solver.factors(weight, 4, "layer"), TruncatedSVD().factors(weight, 4, "layer")):
        losses.append(output_loss(weight, up @ down, moment))
    assert losses[0] < losses[1]
    with pytest.raises(ValueError, match="'other' has no calibration"):
        solver.factors(weight, 4, "other")


def test_new_weights_are_drawn_as_a_new_layer_draws_them():
    down, up = RandomFactors(seed=2).factors(torch.zeros(500, 400), 25, "w")
    assert down.std().item() == pytest.approx(400**-0.5, rel=0.03)
    assert up.abs().max().item() == pytest.approx(25**-0.5, rel=0.01)
    assert torch.equal(down, RandomFactors(seed=2).factors(torch.ones(500, 400), 25, "w")[0])


@given(shape=SHAPES, share=st.floats(0.01, 1.0), seed=st.integers(0, 9))
def test_the_least_rank_of_an_energy(shape, share, seed):
    weight = matrix(shape, seed)
    energy = torch.linalg.svdvals(weight).square()
    rank = EnergyRank(share).of(weight)
    assert energy[:rank].sum() >= share * energy.sum() * (1 - 1e-9)
    assert rank == 1 or energy[: rank - 1].sum() < share * energy.sum()


def test_what_solvers_refuse():
    with pytest.raises(ValueError, match="solver='qr' is unknown; use 'random', 'svd'"):
        solver_of("qr")
    with pytest.raises(ValueError, match="num_iter=0 must be at least 1"):
        solver_of("nmf", 0)
    with pytest.raises(ValueError, match="'proj' has negative weights .* use 'snmf' or 'svd'"):
        NMF().factors(torch.tensor([[1.0, -0.5]]), 1, "proj")
    with pytest.raises(ValueError, match="share=0 of the energy"):
        EnergyRank(0)
