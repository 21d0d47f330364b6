"""The compiled recurrence against the equation, forward and gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.errors import NoCompiler
from shoestring.kernels import damped_averages as module
from shoestring.kernels.damped_averages import (
    MOST_STATES,
    damped_averages,
    naive_damped_averages,
    why_not,
)
from shoestring.yardstick.flops import CostCounter


def problem(batch, seq, dim, states, seed, slowest=0.05):
    """x, damping, weight and skip in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, seq, dim), (dim, states), (dim, states), (dim,)
    x, damping, weight, skip = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)
    return [x, slowest + (1 - slowest) * damping.sigmoid(), weight, skip]


@given(
    batch=st.integers(1, 3),
    seq=st.sampled_from([1, 2, 7, 32, 33, 65]),
    dim=st.sampled_from([1, 3, 16, 17, 40]),
    states=st.sampled_from([1, 2, 5, 8, 16, MOST_STATES]),
    reverse=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_follows_the_equation_with_its_gradient(batch, seq, dim, states, reverse, seed):
    exact = [part.requires_grad_() for part in problem(batch, seq, dim, states, seed)]
    rounded = [part.detach().float().requires_grad_() for part in exact]
    right = naive_damped_averages(*exact, reverse=reverse)
    found = damped_averages(*rounded, reverse=reverse)
    torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-5 * (1 + right.abs().max().item()))
    upstream = torch.randn(right.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mine = torch.autograd.grad((found * upstream.float()).sum(), rounded)
    theirs = torch.autograd.grad((right * upstream).sum(), exact)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-5 * (1 + b.abs().max().item()))


def test_a_slow_average_keeps_its_digits():
    """1 - 1e-7 would be rounded by a fifth of what it takes off."""
    x, one = torch.ones(1, 20_000, 1), torch.ones(1, 1)
    y = damped_averages(x, 1e-7 * one, one, torch.zeros(1))
    exact = (1 - (1 - 1e-7) ** 20_000.0) / 1e-7
    assert y[0, -1, 0].item() == pytest.approx(exact, rel=1e-5)


def test_the_number_of_threads_does_not_matter():
    exact = problem(3, 800, 64, 16, 0)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            parts = [part.float().requires_grad_() for part in exact]
            y = damped_averages(*parts)
            results.append([y, *torch.autograd.grad(y.square().sum(), parts)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_cost_is_that_of_every_average():
    parts = [part.float() for part in problem(2, 10, 16, 4, 0)]
    with CostCounter() as counter:
        damped_averages(*parts)
    assert counter.flops == 5 * 2 * 10 * 16 * 4


def test_it_says_why_it_cannot(monkeypatch):
    x, damping, *_ = (part.float() for part in problem(1, 2, 2, 3, 0))
    assert why_not(x, damping) is None
    assert "float64" in why_not(x.double(), damping)
    assert "CPUs" in why_not(x.to("meta"), damping)
    assert "33 averages" in why_not(x, torch.zeros(2, 33))

    def none():
        raise NoCompiler("no compiler here")

    monkeypatch.setattr(module, "_library", none)
    assert "no compiler here" in why_not(x, damping)


def test_bad_input():
    x, damping, weight, skip = (part.float() for part in problem(1, 2, 4, 3, 0))
    with pytest.raises(ValueError, match=r"skip \(3,\); x of 4 features"):
        damped_averages(x, damping, weight, skip[:3])
    with pytest.raises(ValueError, match=r"weight \(4, 2\)"):
        damped_averages(x, damping, weight[:, :2], skip)
