import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.layers.routing.routing_attention import HeadSplit, RoutingAttention, RoutingCrossAttention
from shoestring.layers.routing.routing_options import LAYER_NORM, UNIT_LENGTH, RoutingOptions
from shoestring.layers.state import Recurrent, state_bytes


def _layer(positions="rotary", local=1, routing=2, causal=True, **options):
    routed = RoutingOptions(**{"n_clusters": 3, "window": 2} | options) if routing else None
    split = HeadSplit(
        local + routing, local, routing, block=3, routing=routed, positions=positions, max_relative_position=4
    )
    layer = RoutingAttention(4 * (local + routing), split, causal=causal).double()
    layer.init_centroids()
    return layer.eval()


def _x(layer, n, seed=0):
    dim = layer.to_q.in_features
    return torch.randn(2, n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _stepped(layer, x, state):
    outs = []
    for token in x.unbind(1):
        out, state = layer.step(token, state)
        outs.append(out)
    return torch.stack(outs, 1), state


@settings(max_examples=20)
@given(
    n=st.integers(1, 23),
    positions=st.sampled_from(["rotary", "tables", "none"]),
    heads=st.sampled_from([(1, 2), (0, 2), (2, 0)]),
    share_qk=st.booleans(),
    convention=st.sampled_from([LAYER_NORM, UNIT_LENGTH]),
    cut=st.integers(0, 23),
)
def test_decoding_equals_the_whole(n, positions, heads, share_qk, convention, cut):
    layer = _layer(positions, *heads, share_qk=share_qk, convention=convention)
    x, cut = _x(layer, n), min(cut, n)
    expected = layer(x).out
    empty = layer.init_state(2)
    torch.testing.assert_close(_stepped(layer, x, empty)[0], expected, rtol=1e-5, atol=1e-5)
    first, state = layer.prefill(x[:, :cut], empty)
    second, state = layer.prefill(x[:, cut:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), expected, rtol=1e-5, atol=1e-5)
    assert state_bytes(state) == state_bytes(empty)


@pytest.mark.parametrize("positions", ["rotary", "tables"])
@pytest.mark.parametrize("convention", [LAYER_NORM, UNIT_LENGTH])
def test_top_w_decoding_takes_each_prefix_anew(positions, convention):
    layer = _layer(positions, local=1, routing=2, mode="top-w", window=3, convention=convention)
    x = _x(layer, 9)
    outs, state = _stepped(layer, x, layer.init_state(2))
    for n in range(1, 10):
        torch.testing.assert_close(outs[:, n - 1], layer(x[:, :n]).out[:, -1], rtol=1e-5, atol=1e-5)
    assert state["routing.keys"].shape[2] == 9
    assert torch.equal(layer.prefill(x, layer.init_state(2))[0], outs)


def test_heads_stand_in_order_and_clusters_mix_distant_tokens():
    layer = _layer(positions="none", n_clusters=1, window=20)
    x = _x(layer, 20).requires_grad_()
    layer.to_out.weight.data = torch.eye(12, dtype=torch.float64)
    out = layer(x).out[0, -1]
    near = torch.autograd.grad(out[8:].sum(), x, retain_graph=True)[0][0].abs().sum(-1)
    far = torch.autograd.grad(out[:8].sum(), x)[0][0].abs().sum(-1)
    assert torch.equal(near > 0, torch.arange(20) >= 15)  # blocks of 3: own and the one before
    assert (far > 0).all()


def test_an_encoder_sees_both_sides():
    layer = _layer(causal=False, mode="top-w", share_qk=False, window=8, n_clusters=2)
    x = _x(layer, 12).requires_grad_()
    grad = torch.autograd.grad(layer(x).out[0, 0].sum(), x)[0][0].abs().sum(-1)
    assert (grad[1:] > 0).any()
    assert layer.leaks_future
    with pytest.raises(ValueError, match="causal=True"):
        layer.init_state(2)


def test_cross_attention_reads_the_memory():
    options = RoutingOptions(2, 3, mode="top-w", share_qk=False)
    layer = RoutingCrossAttention(8, 2, options)
    layer.routing.init_centroids()
    x, memory = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
    memory_valid = torch.arange(7).expand(2, 7) < 4
    valid = torch.arange(5).expand(2, 5) < 4
    found = layer.eval()(x, memory, valid, memory_valid).out
    short = layer(x[:, :4], memory[:, :4]).out
    torch.testing.assert_close(found[:, :4], short)
    assert found.shape == (2, 5, 8)


def test_it_is_recurrent():
    assert isinstance(_layer(), Recurrent)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_heads": 3, "n_local_heads": 1, "n_routing_heads": 1}, "do not add up to n_heads=3"),
        ({"n_heads": 2, "n_local_heads": 3, "n_routing_heads": -1}, "must not be negative"),
        ({"n_heads": 2, "n_local_heads": 1, "n_routing_heads": 1}, "n_routing_heads=1; give both"),
        ({"n_heads": 1, "n_local_heads": 1, "n_routing_heads": 0, "positions": "x"}, "positions='x'"),
    ],
)
def test_splits_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        HeadSplit(**arguments)


def test_dim_must_be_divided():
    with pytest.raises(ValueError, match="dim=5 is not divided by n_heads=2"):
        RoutingAttention(5, HeadSplit(2, 2, 0))
    with pytest.raises(ValueError, match="dim=5 is not divided"):
        RoutingCrossAttention(5, 2, RoutingOptions(2, 3, mode="top-w", share_qk=False))
