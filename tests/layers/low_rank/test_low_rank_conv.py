"""A thin convolution and a 1x1 mean one with the kernel built, for every setting of a convolution."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.layers import LowRankConv, conv_break_even_rank
from shoestring.layers.low_rank.low_rank_conv import (
    kernel_blind_break_even_rank,
    naive_low_rank_conv,
    rank_of_groups,
    taps_of,
)


@given(
    dims=st.integers(1, 3),
    groups=st.integers(1, 3),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_outputs_and_gradients_are_those_of_one_kernel(
    dims, groups, per_group, kernel, stride, padding, dilation, bias, seed
):
    torch.manual_seed(seed)
    ins, outs, rank = (groups * part for part in per_group)
    layer = LowRankConv(
        dims, ins, outs, kernel, rank, stride=stride, padding=padding, dilation=dilation, groups=groups,
        bias=bias, dtype=torch.float64,
    )  # fmt: skip
    x = torch.randn(2, ins, *(7,) * dims, dtype=torch.float64, requires_grad=True)
    found, expected = layer(x), naive_low_rank_conv(layer, x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = [x, *layer.parameters()]
    share = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, weights, share), torch.autograd.grad(expected, weights, share), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert taps_of(layer.down) == kernel**dims


@given(ins=st.integers(1, 9), outs=st.integers(1, 9), taps=st.integers(1, 9), groups=st.integers(1, 4))
def test_break_even_is_where_weights_are_no_longer_saved(ins, outs, taps, groups):
    ins, outs = ins * groups, outs * groups
    rank = conv_break_even_rank(ins, outs, taps, groups)

    def weights(rank: float) -> float:
        return rank * (ins // groups) * taps + outs * rank / groups

    assert weights(rank) <= outs * ins // groups * taps < weights(rank + 1)


def test_the_limit_of_the_package_leaves_the_kernel_out():
    assert kernel_blind_break_even_rank(64, 128, 9) == 64 * 128 // 192
    assert conv_break_even_rank(64, 128, 1) == kernel_blind_break_even_rank(64, 128, 1)
    assert conv_break_even_rank(64, 128, 9) > kernel_blind_break_even_rank(64, 128, 9)
    assert rank_of_groups(5, 4) == 8


def test_what_cannot_be_built():
    with pytest.raises(ValueError, match="rank=3 must be a positive multiple of groups=2, e.g. 4"):
        LowRankConv(1, 4, 4, 3, 3, groups=2)
    with pytest.raises(ValueError, match="rank=0 must be a positive"):
        LowRankConv(1, 4, 4, 3, 0)
    with pytest.raises(ValueError, match="dims=4 must be 1, 2 or 3"):
        LowRankConv(4, 4, 4, 3, 1)
