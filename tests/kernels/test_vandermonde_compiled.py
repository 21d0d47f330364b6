import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.errors import NoCompiler
from shoestring.kernels import vandermonde_compiled as compiled
from shoestring.kernels.vandermonde import naive_vandermonde, real_vandermonde
from shoestring.notices import record_fallbacks
from shoestring.yardstick.flops import CostCounter


def case(rows, features, n, seed, fastest=1.0):
    """Coefficients and logarithms of poles, some slow and some that are over at once."""
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(rows, features, n, generator=g)
    log_poles = -fastest * torch.rand(features, n, generator=g) ** 3
    return v.requires_grad_(), log_poles.requires_grad_()


def wide(arguments):
    return [x.detach().double().requires_grad_() for x in arguments]


@given(
    rows=st.integers(1, 3),
    features=st.integers(1, 5),
    n=st.integers(1, 17) | st.just(compiled.MOST_STATES),
    length=st.integers(1, 40) | st.sampled_from([255, 256, 257, 600]),
    fastest=st.sampled_from([0.01, 1.0, 60.0]),
    seed=st.integers(0, 99),
)
def test_equals_every_power_forward_and_gradient(rows, features, n, length, fastest, seed):
    arguments = case(rows, features, n, seed, fastest)
    exact = wide(arguments)
    found, expected = real_vandermonde(*arguments, length), naive_vandermonde(*exact, length)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed))
    pairs = zip(
        (found, *torch.autograd.grad(found, arguments, upstream)),
        (expected, *torch.autograd.grad(expected, exact, upstream.double())),
        strict=True,
    )
    for ours, theirs in pairs:
        scale = theirs.abs().max().item() + 1e-6
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5 * scale)


def test_slow_poles_keep_their_digits_over_long_sequences():
    arguments = torch.ones(1, 1), torch.tensor([[-1e-5]])
    exact = naive_vandermonde(*(x.double() for x in arguments), 65536)
    assert (real_vandermonde(*arguments, 65536) / exact - 1).abs().max() < 4e-6


def test_poles_that_do_not_decay():
    log_poles = torch.tensor([[0.0, -0.0, 0.01]])
    exact = naive_vandermonde(torch.ones(1, 3).double(), log_poles.double(), 600)
    torch.testing.assert_close(
        real_vandermonde(torch.ones(1, 3), log_poles, 600).double(), exact, rtol=1e-5, atol=0
    )


def test_threads_change_no_bit():
    arguments = case(1, 7, 16, 0)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            taps = real_vandermonde(*arguments, 300)
            found.append((taps, *torch.autograd.grad(taps.square().sum(), arguments)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for other in found[1:] for x, y in zip(found[0], other, strict=True))


@pytest.mark.parametrize("why", ["type", "states", "compiler"])
def test_where_torch_answers_it_is_said(monkeypatch, why):
    arguments = case(1, 2, compiled.MOST_STATES + 1 if why == "states" else 3, 0)
    exact = wide(arguments)
    said_of = {"type": "for torch.float64", "states": "129 sequences are more than 128", "compiler": "(none)"}

    def missing():
        raise NoCompiler("none")

    if why == "compiler":
        monkeypatch.setattr(compiled, "library", missing)
    with record_fallbacks() as said:
        found = real_vandermonde(*(exact if why == "type" else arguments), 20)
    assert said_of[why] in said[0]
    torch.testing.assert_close(found.double(), naive_vandermonde(*exact, 20), rtol=1e-4, atol=1e-5)


def test_it_states_its_cost():
    v, log_poles = case(2, 3, 5, 0)
    with CostCounter() as cost:
        taps = real_vandermonde(v, log_poles, 7)
        taps.sum().backward()
    terms = 2 * 3 * 5 * 7
    assert cost.flops_by_operation["real_vandermonde"] == 3 * terms
    assert cost.flops_by_operation["real_vandermonde_backward"] == 6 * terms
