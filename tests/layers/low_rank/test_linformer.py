"""Linformer: the order of products that costs less gives what the paper's order gives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shoestring.layers import LinformerAttention, SelfAttention, SequenceProjection, Sharing
from shoestring.layers.low_rank.linformer import mixes_first, naive_linformer
from shoestring.yardstick.flops import CostCounter


@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 5),
    projected=st.integers(1, 6),
    spare=st.integers(0, 20),
    cut=st.integers(0, 9),
    sharing=st.sampled_from(Sharing),
    one_kv_head=st.booleans(),
    rank=st.sampled_from([None, 2]),
    bias=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 9),
)
def test_outputs_and_gradients_are_the_naive_ones(
    heads, head_dim, projected, spare, cut, sharing, one_kv_head, rank, bias, masked, seed
):
    torch.manual_seed(seed)
    d_model, longest = heads * head_dim, projected + spare
    length = max(longest - cut, 1)
    shared = SequenceProjection(longest, projected) if sharing is Sharing.LAYERWISE else None
    layer = LinformerAttention(
        d_model, heads, longest, projected, sharing=sharing, shared=shared, one_kv_head=one_kv_head,
        rank=rank, bias=bias,
    ).double()  # fmt: skip
    x = torch.randn(2, length, d_model, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, length) < 0.6 if masked else None
    found, expected = layer(x, mask), naive_linformer(layer, x, mask)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    weights = [x, *layer.parameters()]
    share = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, weights, share), torch.autograd.grad(expected, weights, share), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@given(length=st.integers(1, 60), projected=st.integers(1, 60), d_model=st.integers(1, 60))
def test_with_as_many_outputs_as_inputs_the_longer_side_decides(length, projected, d_model):
    assert mixes_first(length, projected, d_model, d_model) == (projected < length)


def test_all_rows_and_no_mixing_is_dense_attention():
    torch.manual_seed(0)
    dense = SelfAttention(24, 4).double()
    layer = LinformerAttention(24, 4, 17, 17, sharing=Sharing.KEY_VALUE).double()
    q, k, v = dense.qkv.weight.chunk(3)
    q_bias, k_bias, v_bias = dense.qkv.bias.chunk(3)
    with torch.no_grad():
        for part, weight, bias in (
            (layer.query, q, q_bias), (layer.key, k, k_bias), (layer.value, v, v_bias),
            (layer.out, dense.out.weight, dense.out.bias),
        ):  # fmt: skip
            part.weight.copy_(weight)
            part.bias.copy_(bias)
        layer.project_key.weight.copy_(torch.eye(17))
    x = torch.randn(2, 17, 24, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("one_kv_head", [False, True])
@pytest.mark.parametrize("length", [40, 33, 7])
def test_parity_with_the_package(one_kv_head, length):
    linformer = pytest.importorskip("linformer")
    torch.manual_seed(0)
    theirs = linformer.LinformerSelfAttention(32, 40, k=8, heads=4, one_kv_head=one_kv_head).eval()
    ours = LinformerAttention(32, 4, 40, 8, one_kv_head=one_kv_head, bias=False).eval()
    ours.load_state_dict(
        {
            "query.weight": theirs.to_q.weight, "key.weight": theirs.to_k.weight,
            "value.weight": theirs.to_v.weight, "out.weight": theirs.to_out.weight,
            "out.bias": theirs.to_out.bias, "project_key.weight": theirs.proj_k,
            "project_value.weight": theirs.proj_v,
        }
    )  # fmt: skip
    x = torch.randn(3, length, 32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    other = torch.randn(3, 19, 32)
    torch.testing.assert_close(ours(x, context=other), theirs(x, context=other), rtol=1e-5, atol=1e-6)


def test_a_short_input_is_one_padded_with_zeros():
    torch.manual_seed(0)
    for projected in (4, 30):  # either order of products
        layer = LinformerAttention(12, 3, 32, projected).double()
        x = torch.randn(2, 21, 12, dtype=torch.float64)
        padded = nn.functional.pad(x, (0, 0, 0, 11), value=9.0)
        mask = torch.arange(32).expand(2, -1) < 21
        torch.testing.assert_close(layer(x), layer(padded, mask)[:, :21], rtol=1e-9, atol=1e-10)


def test_time_and_weights_grow_with_the_length_alone():
    def flops(length: int) -> int:
        layer = LinformerAttention(32, 4, 1024, 16).eval()
        with torch.no_grad(), CostCounter() as cost:
            layer(torch.randn(1, length, 32))
        return cost.contraction_flops

    assert flops(1024) - flops(512) == 2 * (flops(512) - flops(256))
    count = {
        sharing: sum(p.numel() for p in LinformerAttention(32, 4, 64, 16, sharing=sharing).parameters())
        for sharing in (Sharing.NONE, Sharing.HEADWISE, Sharing.KEY_VALUE)
    }
    maps = 4 * (32 * 32 + 32)
    assert count[Sharing.NONE] == maps + 4 * 2 * 64 * 16
    assert count[Sharing.HEADWISE] == maps + 2 * 64 * 16
    assert count[Sharing.KEY_VALUE] == maps + 64 * 16


def test_a_layer_under_autocast():
    torch.manual_seed(0)
    layer = LinformerAttention(16, 2, 32, 4).eval()
    x, mask = torch.randn(2, 20, 16), torch.arange(20) < torch.tensor([[20], [9]])
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x, mask)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), layer(x, mask), rtol=0.05, atol=0.05)


def test_layers_share_one_projection():
    shared = SequenceProjection(64, 16)
    layers = nn.ModuleList(
        LinformerAttention(32, 4, 64, 16, sharing=Sharing.LAYERWISE, shared=shared) for _ in range(3)
    )
    assert sum(p.numel() for p in layers.parameters()) == 3 * 4 * (32 * 32 + 32) + 64 * 16


def test_what_linformer_cannot_do():
    with pytest.raises(ValueError, match="causal=True: Linformer mixes keys of all times"):
        LinformerAttention(12, 3, 32, 4, causal=True)
    with pytest.raises(ValueError, match="a sequence of 33 is longer than max_length=32"):
        LinformerAttention(12, 3, 32, 4)(torch.randn(1, 33, 12))
    with pytest.raises(ValueError, match="projected=33 must be from 1 to max_length=32"):
        LinformerAttention(12, 3, 32, 33)
    with pytest.raises(
        ValueError, match=r"has \(max_length, projected, heads\) = \(16, 4, None\).*one length"
    ):
        LinformerAttention(
            12, 3, 32, 4, sharing=Sharing.LAYERWISE, shared=SequenceProjection(16, 4)
        )  # fmt: skip
    with pytest.raises(ValueError, match="LAYERWISE needs shared"):
        LinformerAttention(12, 3, 32, 4, sharing=Sharing.LAYERWISE)
    with pytest.raises(ValueError, match="shared is for Sharing.LAYERWISE only"):
        LinformerAttention(12, 3, 32, 4, shared=SequenceProjection(32, 4))
    with pytest.raises(ValueError, match="n_heads=5 must divide d_model=12"):
        LinformerAttention(12, 5, 32, 4)
