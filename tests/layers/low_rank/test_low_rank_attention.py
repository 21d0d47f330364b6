"""Attention of low rank: one encoder product and batched decoders mean four full projections."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shoestring.layers import LowRankLinear, LowRankSelfAttention, SelfAttention
from shoestring.layers.low_rank.low_rank_attention import naive_low_rank_attention


@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 5),
    rank=st.integers(1, 7),
    seq=st.integers(1, 11),
    causal=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 9),
)
def test_outputs_and_gradients_are_the_naive_ones(heads, head_dim, rank, seq, causal, masked, seed):
    torch.manual_seed(seed)
    layer = LowRankSelfAttention(heads * head_dim, heads, rank, causal=causal).double()
    x = torch.randn(3, seq, heads * head_dim, dtype=torch.float64, requires_grad=True)
    mask = (torch.rand(3, seq) < 0.6) if masked else None
    if mask is not None:
        mask[:, 0] = True
    found, expected = layer(x, mask), naive_low_rank_attention(layer, x, mask)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    weights = [x, *layer.parameters()]
    share = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, weights, share), torch.autograd.grad(expected, weights, share), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def test_a_layer_of_four_factored_projections():
    parts = [LowRankLinear(12, 12, 5) for _ in range(4)]
    layer = LowRankSelfAttention.of(*parts, n_heads=3)
    x = torch.randn(2, 7, 12)
    q, k, v = (part(x).unflatten(-1, (3, -1)).transpose(1, 2) for part in parts[:3])
    expected = parts[3](nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)
    assert sum(p.numel() for p in layer.parameters()) == 4 * (5 * 24 + 12)
    with pytest.raises(ValueError, match=r"equal inputs, outputs and rank, and a bias.*\(12, 12, 4, False\)"):
        LowRankSelfAttention.of(*parts[:3], LowRankLinear(12, 12, 4), n_heads=3)


def test_the_dense_layer_is_torchs_own():
    ours = SelfAttention(12, 3)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight, "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight, "out_proj.bias": ours.out.bias,
        }
    )  # fmt: skip
    x, mask = torch.randn(2, 7, 12), torch.arange(7) < torch.tensor([[7], [4]])
    expected = theirs(x, x, x, key_padding_mask=~mask, need_weights=False)[0]
    torch.testing.assert_close(ours(x, mask), expected, rtol=1e-5, atol=1e-6)


def test_a_layer_under_autocast_and_dropout():
    layer = LowRankSelfAttention(16, 2, 4, dropout=0.5)
    x = torch.randn(2, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.eval()(x).dtype == torch.bfloat16
    assert torch.equal(layer(x), layer(x))
    assert not torch.equal(layer.train()(x), layer(x))


@pytest.mark.parametrize("make", [lambda: SelfAttention(10, 3), lambda: LowRankSelfAttention(10, 3, 2)])
def test_heads_that_do_not_divide(make):
    with pytest.raises(ValueError, match="n_heads=3 must divide d_model=10"):
        make()
