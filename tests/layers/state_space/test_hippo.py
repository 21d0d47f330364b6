"""HiPPO: its closed form, and its matrix as diagonal plus low rank."""

import math

import numpy as np
import pytest
import torch
from scipy.special import eval_legendre

from shoestring.layers.state_space.discretise import DenseSystem, bilinear, dense_system, naive_taps
from shoestring.layers.state_space.hippo import (
    diagonal_legs,
    diagonal_linear,
    dplr_legs,
    hippo_legs,
    random_dplr,
)


@pytest.mark.parametrize("d_state", [2, 4, 8, 34, 64, 256])
def test_diagonal_plus_low_rank_is_the_matrix(d_state):
    a, b = hippo_legs(d_state)
    form = dplr_legs(d_state)
    vectors = torch.cat([form.vectors, form.vectors.conj()], dim=1)
    poles = torch.cat([form.poles, form.poles.conj()])
    low_rank = torch.cat([form.low_rank, form.low_rank.conj()])
    inner = torch.diag(poles) - torch.outer(low_rank, low_rank.conj())
    assert (vectors @ inner @ vectors.mH - a).norm() / a.norm() < 1e-10
    assert (form.poles.real + 0.5).abs().max() < 1e-12
    assert torch.equal(form.poles.imag, form.poles.imag.sort().values)
    # turned so that P is real and positive, and B with it
    assert form.low_rank.imag.abs().max() < 1e-11 * form.low_rank.abs().max()
    assert (form.low_rank.real > 0).all()
    torch.testing.assert_close(form.input, math.sqrt(2) * form.low_rank)
    torch.testing.assert_close(2 * (form.vectors @ form.input).real, b)


@pytest.mark.parametrize("t", [0.1, 0.7, 2.0])
def test_the_state_after_an_impulse_is_a_legendre_polynomial(t):
    a, b = hippo_legs(8)
    found = torch.linalg.matrix_exp(t * a) @ b
    n = np.arange(8)
    expected = np.sqrt(2 * n + 1) * eval_legendre(n, 2 * math.exp(-t) - 1) * math.exp(-t)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-12)


def test_taps_reach_the_continuous_response_at_second_order():
    a, b = hippo_legs(8)
    c = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def error(dt, shift):
        system = bilinear(
            DenseSystem(a[None], b[None], c[None, None]), torch.tensor([dt], dtype=torch.float64)
        )
        length = round(1 / dt)
        taps = naive_taps(system, length)[0, 0] / dt
        at = torch.tensor([0.3, 0.8]).double().div(dt).round().long()
        return max((taps[i] - c @ torch.linalg.matrix_exp((i + shift) * dt * a) @ b).abs().item() for i in at)

    assert 3.7 < error(1e-2, 0.5) / error(5e-3, 0.5) < 4.3
    assert 1.7 < error(1e-2, 0.0) / error(5e-3, 0.0) < 2.3


def test_random_matrices_are_stable_and_seeded():
    one, same, other = (random_dplr(64, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(one.poles, same.poles)
    assert torch.equal(one.low_rank, same.low_rank)
    assert not torch.equal(one.poles, other.poles)
    parts = (x[None] for x in (one.poles, one.low_rank, one.input))
    system = dense_system(*parts, one.input[None, None])
    assert torch.linalg.eigvals(system.a).real.max() < 0


def test_diagonal_forms_have_no_low_rank_part():
    legs, linear = diagonal_legs(6), diagonal_linear(6)
    assert torch.equal(legs.poles, dplr_legs(6).poles)
    torch.testing.assert_close(linear.poles.imag, math.pi * torch.arange(3).double())
    assert legs.low_rank.abs().max() == linear.low_rank.abs().max() == 0
    assert legs.d_state == linear.d_state == 6


@pytest.mark.parametrize("make", [dplr_legs, random_dplr, diagonal_legs, diagonal_linear])
def test_odd_state_sizes_are_refused(make):
    with pytest.raises(ValueError, match="d_state=7 must be even and at least 2; use 8"):
        make(7)
    with pytest.raises(ValueError, match="d_state=0 must be even and at least 2; use 2"):
        make(0)
