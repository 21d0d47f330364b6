"""Two thin products mean one with the matrix built, and a new layer keeps the scale of its inputs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shoestring.layers import LowRankEmbedding, LowRankLinear, break_even_rank, linear_of_rank
from shoestring.layers.low_rank.low_rank_embedding import naive_low_rank_embedding
from shoestring.layers.low_rank.low_rank_linear import naive_low_rank_linear

SIZES = st.integers(1, 13)


@given(inputs=SIZES, outputs=SIZES, rank=SIZES, rows=SIZES, bias=st.booleans(), seed=st.integers(0, 9))
def test_outputs_and_gradients_are_those_of_the_product(inputs, outputs, rank, rows, bias, seed):
    torch.manual_seed(seed)
    layer = LowRankLinear(inputs, outputs, rank, bias=bias, dtype=torch.float64)
    x = torch.randn(2, rows, inputs, dtype=torch.float64, requires_grad=True)
    found = layer(x)
    expected = naive_low_rank_linear(x, layer.down.weight, layer.up.weight, layer.bias)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = [x, *layer.parameters()]
    share = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, weights, share), torch.autograd.grad(expected, weights, share), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_inputs_that_are_not_contiguous():
    layer = LowRankLinear(6, 5, 2)
    x = torch.randn(6, 3, 4).permute(2, 1, 0)
    torch.testing.assert_close(layer(x), layer(x.contiguous()))


def test_a_layer_has_its_factors_and_bias_and_no_more():
    layer = LowRankLinear(768, 3072, 100)
    assert sum(p.numel() for p in layer.parameters()) == 100 * (768 + 3072) + 3072
    assert layer.down.weight.std().item() == pytest.approx(768**-0.5, rel=0.02)
    assert layer.up.weight.abs().max().item() == pytest.approx(100**-0.5, rel=0.01)


@pytest.mark.parametrize(("inputs", "outputs", "rank"), [(768, 768, 384), (768, 3072, 614), (1, 1, 0)])
def test_where_two_factors_stop_saving(inputs, outputs, rank):
    assert break_even_rank(inputs, outputs) == rank
    assert rank * (inputs + outputs) <= inputs * outputs < (rank + 1) * (inputs + outputs)


def test_full_where_no_rank_is_given():
    assert type(linear_of_rank(4, 3, None, bias=False)) is nn.Linear
    assert linear_of_rank(4, 3, None, bias=False).bias is None
    assert linear_of_rank(4, 3, 2).rank == 2


@pytest.mark.parametrize("rank", [0, -3])
def test_ranks_below_one(rank):
    with pytest.raises(ValueError, match=f"rank={rank} must be at least 1"):
        LowRankLinear(4, 3, rank)
    with pytest.raises(ValueError, match=f"rank={rank} must be at least 1"):
        LowRankEmbedding(4, 3, rank)


def test_an_embedding_of_low_rank():
    torch.manual_seed(0)
    layer = LowRankEmbedding(1000, 64, 16)
    ids = torch.randint(1000, (3, 5))
    assert layer(ids).shape == (3, 5, 64)
    torch.testing.assert_close(layer(ids), naive_low_rank_embedding(layer, ids))
    assert layer.weight.std().item() == pytest.approx(1, rel=0.1)
    assert sum(p.numel() for p in layer.parameters()) == 16 * (1000 + 64)
