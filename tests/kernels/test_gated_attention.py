"""The compiled passes around gated attention against the equation, forward and gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.errors import NoCompiler
from shoestring.kernels import gated_attention as module
from shoestring.kernels.gated_attention import (
    BlockPattern,
    Turns,
    gated_attention,
    naive_gated_attention,
    why_not,
)
from shoestring.yardstick.flops import CostCounter


def problem(batch, n, d_qk, d_hidden, seed):
    """x, gain and offset in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, n, d_qk + 2 * d_hidden), (2, d_qk), (2, d_qk)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def turned(batch, n, d_qk, seed):
    """Tables of more rows than tokens, and the rows of the tokens."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.randn(2 * n, d_qk // 2, generator=generator)
    places = torch.randint(2 * n, (batch, n), generator=generator)
    return Turns(angle.cos(), angle.sin(), places)


def compare(exact, pattern, **options):
    for part in exact:
        part.requires_grad_()
    rounded = [part.detach().float().requires_grad_() for part in exact]
    found = gated_attention(*rounded, pattern, **options)
    right = naive_gated_attention(*exact, pattern, **options)
    torch.testing.assert_close(found.double(), right, rtol=2e-5, atol=2e-5)
    weight = torch.randn(right.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mine = torch.autograd.grad((found * weight.float()).sum(), rounded)
    theirs = torch.autograd.grad((right * weight).sum(), exact)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * max(1.0, b.abs().max().item()))


@given(
    batch=st.integers(1, 3),
    n=st.sampled_from([1, 2, 5, 16, 17, 31, 70]),
    d_qk=st.sampled_from([2, 6, 16, 34]),
    d_hidden=st.sampled_from([1, 5, 16, 19]),
    block=st.sampled_from([1, 3, 8, 16, 23, 80]),
    sides=st.tuples(st.integers(0, 3), st.integers(0, 2)),
    causal=st.booleans(),
    reach=st.sampled_from([None, 0, 1, 4, 20]),
    turns=st.booleans(),
    holes=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_follows_the_equation_with_its_gradient(
    batch, n, d_qk, d_hidden, block, sides, causal, reach, turns, holes, seed
):
    before, after = sides
    pattern = BlockPattern(block, before, 0 if causal else after, causal, reach)
    filled = None
    if holes:
        filled = torch.rand(batch, n, generator=torch.Generator().manual_seed(seed)) < 0.6
    compare(
        problem(batch, n, d_qk, d_hidden, seed), pattern, scale=0.7, filled=filled,
        turns=turned(batch, n, d_qk, seed) if turns else None,
    )  # fmt: skip


def test_a_token_that_sees_no_key_gets_nothing():
    x, gain, offset = (part.float() for part in problem(1, 6, 4, 3, 0))
    filled = torch.tensor([[False, False, True, True, False, True]])
    out = gated_attention(x, gain, offset, BlockPattern(6), scale=1.0, filled=filled)
    assert out[0, :2].eq(0).all()
    assert out[0, 2:].ne(0).all()


def test_samples_do_not_see_each_other():
    x, gain, offset = (part.float() for part in problem(3, 10, 4, 3, 0))
    pattern = BlockPattern(4, 1, 1, causal=False, reach=3)
    together = gated_attention(x, gain, offset, pattern, scale=1.0)
    alone = [gated_attention(sample[None], gain, offset, pattern, scale=1.0) for sample in x]
    torch.testing.assert_close(together, torch.cat(alone))


def test_the_number_of_threads_does_not_matter():
    exact = problem(2, 700, 32, 48, 0)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            parts = [part.float().requires_grad_() for part in exact]
            out = gated_attention(*parts, BlockPattern(64, 1, reach=64), scale=0.2)
            results.append([out, *torch.autograd.grad(out.square().sum(), parts)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # torch's products may differ in rounding


def test_cost_is_that_of_both_products():
    x, gain, offset = (part.float().requires_grad_() for part in problem(2, 64, 8, 16, 0))
    with CostCounter() as forward:
        out = gated_attention(x, gain, offset, BlockPattern(16, 1), scale=1.0)
    assert forward.flops == 2 * 128 * 32 * (8 + 16)
    with CostCounter() as backward:
        out.sum().backward()
    assert backward.flops >= 2 * forward.flops


def test_it_says_why_it_cannot(monkeypatch):
    x, gain, _ = (part.float() for part in problem(1, 2, 2, 1, 0))
    assert why_not(x, gain) is None
    assert "float64" in why_not(x, gain.double())
    assert "CPUs" in why_not(x.to("meta"))

    def none():
        raise NoCompiler("no compiler here")

    monkeypatch.setattr(module, "_library", none)
    assert "no compiler here" in why_not(x)


def test_bad_input():
    x, gain, offset = (part.float() for part in problem(1, 4, 4, 3, 0))
    with pytest.raises(ValueError, match="block=0 must be 1 or more"):
        BlockPattern(0)
    with pytest.raises(ValueError, match="reach=-1 must be 0 or more"):
        BlockPattern(1, reach=-1)
    with pytest.raises(ValueError, match="after=1 looks ahead"):
        BlockPattern(1, after=1)
    with pytest.raises(ValueError, match="give \\(batch, n, 4 \\+ 2 d_hidden\\)"):
        gated_attention(x[..., :-1], gain, offset, BlockPattern(2), scale=1.0)
    with pytest.raises(ValueError, match="offset \\(1, 4\\)"):
        gated_attention(x, gain, offset[:1], BlockPattern(2), scale=1.0)
    turns = Turns(torch.ones(4, 2), torch.zeros(4, 2), torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="places is \\(1, 3\\)"):
        gated_attention(x, gain, offset, BlockPattern(2), scale=1.0, turns=turns)
