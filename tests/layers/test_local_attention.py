import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.layers.local_attention import (
    Blocks,
    LocalPattern,
    local_attention,
    naive_local_attention,
    softmax_weights,
    squared_relu_weights,
)
from shoestring.yardstick.causality import influence, leaks
from shoestring.yardstick.flops import CostCounter


@st.composite
def patterns(draw):
    block, before = draw(st.integers(1, 7)), draw(st.integers(0, 2))
    causal = draw(st.booleans())
    after = 0 if causal else draw(st.integers(0, 2))
    covered = block * (before if causal else min(before, after))
    reach = draw(st.none() | st.integers(0, covered))
    return LocalPattern(block, before, after, causal, reach)


def _inputs(n, seed, dim=3, dim_v=5):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, 2, n, d, generator=generator, dtype=torch.float64).requires_grad_()
        for d in (dim, dim, dim_v)
    ]


def _same(out, expected, inputs):
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    weight = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(9))
    ours = torch.autograd.grad((out * weight).sum(), inputs)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def _valid(n, seed):
    valid = torch.rand(2, 1, n, generator=torch.Generator().manual_seed(seed)) < 0.6
    valid[..., seed % n] = True
    return valid


@given(pattern=patterns(), n=st.integers(1, 31), ragged=st.booleans(), seed=st.integers(0, 99))
def test_fused_blocks_equal_the_masked_square(pattern, n, ragged, seed):
    inputs = _inputs(n, seed)
    valid = _valid(n, seed) if ragged else None
    out = local_attention(*inputs, pattern, valid=valid)
    _same(out, naive_local_attention(*inputs, pattern, valid=valid), inputs)


@given(
    pattern=patterns(),
    n=st.integers(1, 31),
    activation=st.sampled_from([softmax_weights, squared_relu_weights]),
    ragged=st.booleans(),
    seed=st.integers(0, 99),
)
def test_biased_blocks_equal_the_masked_square(pattern, n, activation, ragged, seed):
    inputs = _inputs(n, seed)
    table = torch.randn(200, dtype=torch.float64, requires_grad=True)
    valid = _valid(n, seed) if ragged else None
    out = local_attention(
        *inputs,
        pattern,
        scale=0.7,
        valid=valid,
        activation=activation,
        bias=lambda b: table[b.distance + 100],
    )
    position = torch.arange(n)
    bias = table[position - position[:, None] + 100]
    expected = naive_local_attention(
        *inputs, pattern, scale=0.7, valid=valid, activation=activation, bias=bias
    )
    _same(out, expected, [*inputs, table])


@given(pattern=patterns(), n=st.integers(1, 31), seed=st.integers(0, 99))
def test_only_allowed_pairs_meet(pattern, n, seed):
    inputs = _inputs(n, seed)
    kind = torch.randint(3, (2, 1, n), generator=torch.Generator().manual_seed(seed))

    def same_kind(blocks):
        return blocks.queries(kind[..., None]) == blocks.keys(kind[..., None]).transpose(-1, -2)

    out = local_attention(*inputs, pattern, allowed=same_kind)
    expected = naive_local_attention(*inputs, pattern, allowed=kind[..., None] == kind[..., None, :])
    _same(out, expected, inputs)


def test_a_row_that_may_meet_nobody_gets_zero():
    inputs = _inputs(7, 0)
    out = local_attention(*inputs, LocalPattern(3), allowed=lambda b: torch.zeros(1, 1, 1, dtype=torch.bool))
    assert not out.any()
    out.sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in inputs)


def test_value_bias_reads_the_weights():
    inputs = _inputs(10, 1)
    pattern = LocalPattern(4)
    ones = torch.ones(5, dtype=torch.float64)
    out = local_attention(*inputs, pattern, value_bias=lambda b, w: w.sum(-1, keepdim=True) * ones)
    torch.testing.assert_close(out, local_attention(*inputs, pattern) + 1)


def test_an_exact_window_reaches_so_far_and_no_further():
    pattern = LocalPattern.window(3, causal=False)
    x = torch.randn(11, 2, dtype=torch.float64)
    found = influence(lambda x: local_attention(x, x, x, pattern), x) != 0
    position = torch.arange(11)
    assert torch.equal(found, (position - position[:, None]).abs() <= 3)


def test_a_causal_pattern_leaks_nothing():
    x = torch.randn(13, 2, dtype=torch.float64)
    assert not leaks(lambda x: local_attention(x, x, x, LocalPattern(4, before=2)), x).any()


def test_cost_is_linear_in_the_length():
    def flops(n):
        q = torch.randn(1, 2, n, 8)
        with CostCounter() as cost:
            local_attention(q, q, q, LocalPattern(16))
        return cost.flops

    assert flops(1024) / flops(512) == pytest.approx(2, rel=0.02)


def test_runs_under_autocast():
    q = torch.randn(1, 2, 20, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = local_attention(q, q, q, LocalPattern(4), bias=lambda b: b.distance * 0.1)
    expected = local_attention(q, q, q, LocalPattern(4), bias=lambda b: b.distance * 0.1)
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)


def test_queries_are_merged_back():
    x = torch.randn(2, 10, 3)
    blocks = Blocks(LocalPattern(4), 10)
    assert torch.equal(blocks.merge(blocks.queries(x)), x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block": 0}, "block=0 must be 1"),
        ({"block": 4, "before": -1}, "before=-1"),
        ({"block": 4, "after": 1}, "after=1 looks ahead"),
        ({"block": 4, "reach": 5}, "reach=5 is more than the 4"),
        ({"block": 4, "before": 2, "after": 0, "causal": False, "reach": 1}, "reach=1 is more than the 0"),
    ],
)
def test_patterns_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        LocalPattern(**arguments)


def test_a_window_below_one():
    with pytest.raises(ValueError, match="window=0"):
        LocalPattern.window(0, causal=True)


def test_padding_only():
    q = torch.randn(2, 5, 3)
    valid = torch.tensor([[True] * 5, [False] * 5])
    with pytest.raises(ValueError, match="without a single token"):
        local_attention(q, q, q, LocalPattern(2), valid=valid)
