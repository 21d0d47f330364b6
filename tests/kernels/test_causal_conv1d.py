"""The depthwise causal convolution: compiled and torch against its equation, and its state."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.errors import NoCompiler
from shoestring.kernels import causal_conv1d as module
from shoestring.kernels.causal_conv1d import (
    causal_conv1d,
    naive_causal_conv1d,
    prefill_conv1d,
    step_conv1d,
)
from shoestring.notices import record_fallbacks
from shoestring.yardstick.flops import CostCounter


def problem(batch, seq, channels, width, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, seq, 2 * channels), (channels, width), (channels,)
    x, weight, bias = (torch.randn(*s, generator=generator, dtype=dtype) for s in shapes)
    return x[..., channels:].requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


SHAPES = {
    "batch": st.integers(1, 3), "seq": st.sampled_from([1, 2, 3, 7, 63, 64, 65, 130]),
    "channels": st.sampled_from([1, 3, 16, 17, 40]), "width": st.sampled_from([1, 2, 3, 4, 7]),
    "silu": st.booleans(), "reverse": st.booleans(), "has_bias": st.booleans(), "seed": st.integers(0, 99),
}  # fmt: skip


def both(dtype, tolerance, batch, seq, channels, width, silu, reverse, has_bias, seed):
    exact = problem(batch, seq, channels, width, seed)
    exact = exact if has_bias else exact[:2]
    rounded = [part.detach().to(dtype).requires_grad_() for part in exact]
    options = {"silu": silu, "reverse": reverse}
    found, right = causal_conv1d(*rounded, **options), naive_causal_conv1d(*exact, **options)
    torch.testing.assert_close(found.double(), right, rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(right)
    mine = torch.autograd.grad((found * weight.to(dtype)).sum(), rounded)
    theirs = torch.autograd.grad((right * weight).sum(), exact)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=10 * tolerance)


@given(**SHAPES)
def test_compiled_follows_the_equation_with_its_gradient(**shape):
    both(torch.float32, 1e-5, **shape)


@given(**SHAPES)
def test_torch_follows_the_equation_with_its_gradient(**shape):
    both(torch.float64, 1e-10, **shape)


def test_gradcheck():
    assert torch.autograd.gradcheck(lambda *a: causal_conv1d(*a, silu=True), problem(1, 6, 3, 4, 0))


def test_threads_change_no_bit():
    x, weight, bias = (part.detach().float().requires_grad_() for part in problem(2, 200, 40, 4, 0))
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        y = causal_conv1d(x, weight, bias, silu=True)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, weight, bias))))
    torch.set_num_threads(1)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@given(pieces=st.lists(st.integers(1, 6), min_size=1, max_size=5), width=st.sampled_from([1, 2, 4, 7]))
def test_pieces_and_steps_make_the_whole(pieces, width):
    """Prompts shorter than the kernel included."""
    x, weight, bias = (part.detach().float() for part in problem(2, sum(pieces), 5, width, 0))
    whole = causal_conv1d(x, weight, bias, silu=True)
    state = stepped = x.new_zeros(2, width - 1, 5)
    found, steps = [], []
    for piece in x.split(pieces, 1):
        y, state = prefill_conv1d(piece, state, weight, bias, silu=True)
        found.append(y)
    for t in range(x.shape[1]):
        y, stepped = step_conv1d(x[:, t], stepped, weight, bias, silu=True)
        steps.append(y)
    torch.testing.assert_close(torch.cat(found, 1), whole)
    torch.testing.assert_close(torch.stack(steps, 1), whole)
    assert torch.equal(state, stepped)


def test_what_is_carried_on_keeps_nothing_else_in_memory():
    x, weight = torch.randn(2, 500, 3), torch.randn(3, 4)
    _, state = prefill_conv1d(x, torch.zeros(2, 3, 3), weight)
    assert torch.equal(state, x[:, -3:])
    assert state.untyped_storage().nbytes() == state.nbytes


def test_bfloat16_is_computed_in_float32():
    x, weight, bias = (part.detach().bfloat16() for part in problem(1, 9, 5, 4, 0))
    y = causal_conv1d(x, weight, bias)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, causal_conv1d(x.float(), weight.float(), bias.float()).bfloat16())


def test_without_a_compiler_torch_answers(monkeypatch):
    def missing():
        raise NoCompiler("none here")

    monkeypatch.setattr(module, "_library", missing)
    x, weight, bias = (part.detach().float() for part in problem(1, 9, 5, 4, 0))
    with record_fallbacks() as notices:
        y = causal_conv1d(x, weight, bias, silu=True)
    torch.testing.assert_close(y, naive_causal_conv1d(x, weight, bias, silu=True))
    assert any("none here" in notice for notice in notices)


def test_cost():
    x, weight, bias = (part.detach().float() for part in problem(2, 9, 5, 4, 0))
    with CostCounter() as counter:
        causal_conv1d(x, weight, bias)
    assert counter.flops == 2 * 2 * 9 * 5 * 4


def test_bad_input():
    x, weight, bias = problem(1, 9, 5, 4, 0)
    with pytest.raises(ValueError, match="a seq of at least 1"):
        causal_conv1d(x[:, :0], weight)
    with pytest.raises(ValueError, match="bias is for 4 channels, x has 5"):
        causal_conv1d(x, weight, bias[:4])
    with pytest.raises(ValueError, match=r"before is \(1, 4, 5\); a width of 4 takes \(1, 3, 5\)"):
        prefill_conv1d(x, x[:, :4], weight)
