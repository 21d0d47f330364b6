"""The damped moving average: convolution, recurrence and the equations say the same."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.layers.seqboat.ema import DampedEMA, naive_damped_ema
from shoestring.layers.state import Recurrent, reorder_state
from shoestring.notices import record_fallbacks
from shoestring.yardstick.causality import leaks


def made(d_model, n_states=4, seed=0, **options):
    torch.manual_seed(seed)
    return DampedEMA(d_model, n_states, **options).double()


@given(
    batch=st.integers(1, 3),
    seq=st.sampled_from([1, 2, 7, 31, 64]),
    d_model=st.sampled_from([1, 3, 8]),
    n_states=st.sampled_from([1, 5]),
    bidirectional=st.booleans(),
)
def test_convolution_equals_recurrence_with_gradients(batch, seq, d_model, n_states, bidirectional):
    ema = made(d_model, n_states, bidirectional=bidirectional)
    x = torch.randn(batch, seq, d_model, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(batch, seq, d_model, dtype=torch.float64)
    inputs = [x, *ema.parameters()]
    fast, slow = ema(x), naive_damped_ema(ema, x)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    ours = torch.autograd.grad((fast * weight).sum(), inputs)
    theirs = torch.autograd.grad((slow * weight).sum(), inputs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8)


def test_single_precision_is_near():
    torch.manual_seed(1)
    ema, x = DampedEMA(6, 16), torch.randn(2, 300, 6)
    torch.testing.assert_close(ema(x), naive_damped_ema(ema, x), rtol=1e-5, atol=1e-5)


@given(
    seq=st.sampled_from([1, 2, 31, 40]), d_model=st.sampled_from([1, 8, 17]), bidirectional=st.booleans(),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_the_compiled_recurrence_equals_the_equations_with_gradients(seq, d_model, bidirectional, seed):
    exact = made(d_model, 5, seed, bidirectional=bidirectional)
    ema = copy.deepcopy(exact).float()
    x = torch.randn(2, seq, d_model, dtype=torch.float64)
    mask = torch.ones(2, seq, dtype=torch.bool)
    mask[0, seq // 2 + 1 :] = False
    upstream = torch.randn_like(x)
    with record_fallbacks() as said:
        fast = ema(x.float(), mask)
    assert not said
    slow = naive_damped_ema(exact, x.masked_fill(~mask.unsqueeze(-1), 0.0))
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad((fast * upstream.float()).sum(), list(ema.parameters()))
    theirs = torch.autograd.grad((slow * upstream).sum(), list(exact.parameters()))
    for mine, other in zip(ours, theirs, strict=True):
        scale = 1 + other.abs().max().item()
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=1e-5 * scale)


def test_a_kernel_ends_where_nothing_is_left():
    ema = made(2, 3)
    slowest = ema.coefficients()[1].amax().item()
    taps = ema.kernel(5000).shape[-1]
    assert -80 / slowest <= taps <= -80 / slowest + 1
    with torch.no_grad():
        ema.delta[0, 0, 0] = -20.0  # one that remembers is not cut
    assert ema.kernel(5000).shape[-1] == 5000


@given(seq=st.integers(1, 40), cut=st.integers(0, 40), piece=st.integers(1, 9))
def test_pieces_and_steps_equal_one_pass(seq, cut, piece):
    cut = min(cut, seq)
    ema = made(3)
    assert isinstance(ema, Recurrent)
    x = torch.randn(2, seq, 3, dtype=torch.float64)
    state, outs = ema.init_state(2), []
    for part in x[:, :cut].split(piece, 1) if cut else ():
        out, state = ema.prefill(part, state)
        outs.append(out)
    for t in range(cut, seq):
        out, state = ema.step(x[:, t], state)
        outs.append(out[:, None])
    torch.testing.assert_close(torch.cat(outs, 1), ema(x), rtol=1e-9, atol=1e-9)


def test_a_state_is_brought_forward_over_several_chunks():
    ema = made(2)
    x = torch.randn(3, 300, 2, dtype=torch.float64)
    _, whole = ema.prefill(x, ema.init_state(3))
    state = ema.init_state(3)
    for t in range(300):
        _, state = ema.step(x[:, t], state)
    torch.testing.assert_close(whole["ema"], state["ema"], rtol=1e-9, atol=1e-9)
    assert torch.equal(reorder_state(whole, torch.tensor([2, 0]))["ema"], whole["ema"][[2, 0]])


def test_both_directions_are_the_sum_that_counts_lag_0_twice():
    ema = made(2, bidirectional=True)
    x = torch.randn(1, 9, 2, dtype=torch.float64)
    k = ema.kernel(9)
    for t in range(9):
        behind = sum(k[0, :, s] * x[0, t - s] for s in range(t + 1))
        ahead = sum(k[1, :, s] * x[0, t + s] for s in range(9 - t))
        torch.testing.assert_close(ema(x)[0, t], behind + ahead + ema.omega * x[0, t])


def test_kernel_is_the_formula_and_truncation_cuts_it():
    ema = made(3, 5)
    p, a = torch.sigmoid(ema.delta[0]), torch.sigmoid(ema.alpha[0])
    expected = [
        (ema.gamma[0] * p * ema.beta[0] * (1 - p * a) ** lag).sum(-1) / math.sqrt(5) for lag in range(20)
    ]
    torch.testing.assert_close(ema.kernel(20)[0], torch.stack(expected, -1))
    ema.truncation = 4
    x = torch.randn(1, 20, 3, dtype=torch.float64)
    taps = torch.stack(expected, -1)[:, :4]
    last = sum(taps[:, s] * x[0, 19 - s] for s in range(4)) + ema.omega * x[0, 19]
    torch.testing.assert_close(ema(x)[0, 19], last)


def test_pads_count_as_zero_whatever_they_hold():
    ema = made(3)
    x = torch.randn(2, 8, 3, dtype=torch.float64)
    mask = torch.tensor([[True] * 8, [True] * 5 + [False] * 3])
    spoilt = x.masked_fill(~mask[..., None], torch.nan)
    torch.testing.assert_close(ema(spoilt, mask)[1, :5], ema(x)[1, :5])
    assert ema(spoilt, mask).isfinite().all()


def test_only_one_direction_is_causal():
    x = torch.randn(7, 2, dtype=torch.float64)

    def early(ema):
        def run(u):  # Fourier transforms leave rounding where a sum has nothing
            y = naive_damped_ema(ema, u[None])[0]
            torch.testing.assert_close(y, ema(u[None])[0])
            return y

        return leaks(run, x)

    assert not early(made(2)).any()
    assert early(made(2, bidirectional=True)).any()


def test_the_start_is_mega_s():
    torch.manual_seed(0)
    ema = DampedEMA(200, 16)
    for name, std in (("delta", 0.2), ("alpha", 0.2), ("gamma", 1.0), ("omega", 1.0)):
        values = getattr(ema, name)
        assert values.abs().max() <= 2 * std
        assert values.std().item() == pytest.approx(0.88 * std, rel=0.15)  # a normal cut at 2 deviations
    signs = torch.tensor([1.0, -1.0] * 8)
    assert (ema.beta - signs).abs().max() <= 0.04


def test_half_precision_and_autocast_work_in_float32():
    torch.manual_seed(0)
    ema, x = DampedEMA(4), torch.randn(1, 50, 4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ema(x), ema(x.clone()))
        inside = ema(x)
    torch.testing.assert_close(inside, ema(x))
    assert ema(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(ema(x.bfloat16()).float(), ema(x), rtol=0.05, atol=0.05)


def test_bad_input():
    with pytest.raises(ValueError, match="n_states=0 must be at least 1"):
        DampedEMA(4, 0)
    with pytest.raises(ValueError, match="truncation=0 must be at least 1"):
        DampedEMA(4, truncation=0)
    both = DampedEMA(2, bidirectional=True)
    for call in (lambda: both.init_state(1), lambda: both.step(torch.zeros(1, 2), {})):
        with pytest.raises(ValueError, match="bidirectional EMA has no state"):
            call()
    with pytest.raises(ValueError, match="truncation=3 cuts the kernel"):
        DampedEMA(2, truncation=3).prefill(torch.zeros(1, 2, 2), {})
