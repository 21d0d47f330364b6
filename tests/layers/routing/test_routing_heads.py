import pytest
import torch
from torch.nn import functional as F

from shoestring.layers.rotary import Rope
from shoestring.layers.routing.relative_tables import RelativeTables
from shoestring.layers.routing.routing_heads import RoutingHeads
from shoestring.layers.routing.routing_options import UNIT_LENGTH, RoutingOptions
from shoestring.notices import record_fallbacks
from shoestring.yardstick.flops import CostCounter


def _heads(options=None, n_heads=2, head_dim=4, **kinds):
    heads = RoutingHeads(n_heads, head_dim, options or RoutingOptions(3, 4), **kinds)
    heads.init_centroids()
    return heads.eval()


def _vectors(n, heads=2, dim=4, seed=0, dtype=torch.float32):
    return torch.randn(2, heads, n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_one_cluster_of_all_tokens_is_dense_attention():
    heads = _heads(RoutingOptions(1, 9, mode="top-w")).double()
    q, v = _vectors(9, dtype=torch.float64), _vectors(9, seed=1, dtype=torch.float64)
    x = F.layer_norm(q, (4,), eps=1e-6)
    expected = F.scaled_dot_product_attention(x, x, v, is_causal=True) / 1.01
    torch.testing.assert_close(heads(q, None, v).out, expected, rtol=1e-5, atol=1e-5)


def test_scores_without_scale():
    heads = _heads(RoutingOptions(1, 9, mode="top-w", routing_scale="none")).double()
    q, v = _vectors(9, dtype=torch.float64), _vectors(9, seed=1, dtype=torch.float64)
    x = F.layer_norm(q, (4,), eps=1e-6)
    expected = F.scaled_dot_product_attention(x, x, v, is_causal=True, scale=1.0) / 1.01
    torch.testing.assert_close(heads(q, None, v).out, expected)


def _changed(mode, trials=5):
    """Outputs before position 16 that differ after the tokens from there on were replaced."""
    heads = _heads(RoutingOptions(4, 8, mode=mode))
    differ = 0
    for seed in range(trials):
        q, v = _vectors(32, seed=seed), _vectors(32, seed=seed + 50)
        other_q, other_v = _vectors(32, seed=seed + 100), _vectors(32, seed=seed + 150)
        other_q[:, :, :16], other_v[:, :, :16] = q[:, :, :16], v[:, :, :16]
        one, other = heads(q, None, v).out, heads(other_q, None, other_v).out
        differ += int((one != other)[:, :, :16].any(-1).sum())
    return differ


def test_strict_mode_never_looks_ahead():
    assert _changed("strict") == 0
    assert not _heads().leaks_future


def test_top_w_mode_leaks_and_says_so():
    assert _changed("top-w") > 0
    assert _heads(RoutingOptions(4, 8, mode="top-w")).leaks_future
    assert _heads(RoutingOptions(4, 8, mode="top-w"), causal=False).leaks_future


def test_training_moves_the_centroids_and_evaluation_does_not():
    heads = _heads().train()
    before = heads.kmeans.centroids.clone()
    found = heads(_vectors(12).requires_grad_(), None, _vectors(12))
    (found.out.sum() + found.commitment).backward()
    heads.kmeans.update()
    assert not torch.equal(heads.kmeans.centroids, before)
    assert heads.kmeans.centroids.grad is None
    before = heads.kmeans.centroids.clone()
    heads.eval()(_vectors(12, seed=5), None, _vectors(12))
    heads.kmeans.update()
    assert torch.equal(heads.kmeans.centroids, before)


def test_own_keys_are_learned_from_too():
    options = RoutingOptions(3, 4, mode="top-w", share_qk=False)
    heads = _heads(options, causal=False).train()
    heads(_vectors(12), _vectors(12, seed=1), _vectors(12))
    assert heads.kmeans._pending.counts.sum() == 2 * 2 * 12 * 2


def test_the_unrouted_fraction_is_about_one_in_e_at_the_start():
    heads = _heads(RoutingOptions(16, 16, mode="top-w"), head_dim=32)
    missed = heads(_vectors(256, dim=32), None, _vectors(256, dim=32)).unrouted_fraction
    assert 0.25 < missed < 0.5
    strict = _heads(RoutingOptions(16, 16), head_dim=32)
    assert strict(_vectors(256, dim=32), None, _vectors(256, dim=32)).unrouted_fraction == 0


def test_twice_the_length_costs_two_to_the_three_halves():
    def flops(n):
        heads = _heads(RoutingOptions(*RoutingOptions.sizes_for(n), mode="top-w"), n_heads=1, head_dim=64)
        q = torch.randn(1, 1, n, 64)
        with CostCounter() as cost:
            heads(q, None, q)
        return cost.contraction_flops

    assert flops(2048) / flops(1024) == pytest.approx(2**1.5, rel=0.05)


@pytest.mark.parametrize("mode", ["strict", "top-w"])
@pytest.mark.parametrize("convention", [None, UNIT_LENGTH])
def test_padding_changes_nothing(mode, convention):
    extra = {} if convention is None else {"convention": convention}
    heads = _heads(RoutingOptions(3, 4, mode=mode, **extra), rope=Rope())
    q, v = _vectors(12), _vectors(12, seed=1)
    valid = torch.arange(12).expand(2, 12) < 8
    padded = heads(q, None, v, valid)
    alone = heads(q[:, :, :8], None, v[:, :, :8])
    torch.testing.assert_close(padded.out[:, :, :8], alone.out)
    assert not padded.out[:, :, 8:].any()
    heads.train()
    padded, alone = heads(q, None, v, valid), heads(q[:, :, :8], None, v[:, :, :8])
    torch.testing.assert_close(padded.commitment, alone.commitment)


def test_autocast_keeps_routing_exact():
    heads = _heads().train()
    q, v = _vectors(12), _vectors(12, seed=1)
    expected = heads(q, None, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = heads(q, None, v)
    torch.testing.assert_close(found.commitment, expected.commitment)
    torch.testing.assert_close(found.out.float(), expected.out, rtol=0.05, atol=0.05)


def test_the_published_package_gives_the_same():
    package = pytest.importorskip("routing_transformer.routing_transformer")
    for window in (4, 12):
        peer = package.KmeansAttention(3, window, 2, 4, causal=True, shared_qk=True).eval()
        options = RoutingOptions(3, window, mode="top-w", convention=UNIT_LENGTH)
        heads = _heads(options)
        peer.kmeans.means.copy_(heads.kmeans.centroids)
        peer.kmeans.initted.fill_(True)
        q, v = _vectors(12), _vectors(12, seed=1)
        # Padding takes places in its clusters, in ours not: the same only where all tokens are taken.
        ragged = torch.arange(12).expand(2, 12) < 9
        for valid in (None, ragged) if window == 12 else (None,):
            expected, _ = peer(q, q, v, query_mask=valid)
            found = heads(q, None, v, valid).out
            kept = torch.ones(12, dtype=torch.bool) if valid is None else valid[0]
            torch.testing.assert_close(found[:, :, kept], expected[:, :, kept], rtol=1e-5, atol=1e-6)


def test_a_window_longer_than_the_sequence_is_said_aloud():
    heads = _heads(RoutingOptions(2, 20, mode="top-w"))
    with record_fallbacks() as said:
        heads(_vectors(6), None, _vectors(6))
    assert any("window=20" in line for line in said)


@pytest.mark.parametrize(
    ("options", "kinds", "message"),
    [
        ({"mode": "top-w", "share_qk": False}, {}, "causal top-w with keys of their own"),
        ({"mode": "top-w"}, {"causal": False, "memory": True}, "share_qk=True with a memory"),
        ({"mode": "top-w", "share_qk": False}, {"memory": True}, "use causal=False"),
        ({"share_qk": False}, {"causal": False}, "mode='strict' is causal; use mode='top-w'"),
        ({}, {"relative": RelativeTables(3, 4), "rope": Rope()}, "exclude each other"),
    ],
)
def test_combinations_that_are_wrong(options, kinds, message):
    with pytest.raises(ValueError, match=message):
        RoutingHeads(2, 4, RoutingOptions(3, 4, **options), **kinds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": 0}, "n_clusters=0 must be 1"),
        ({"window": 0}, "window=0 must be 1"),
        ({"mode": "paper"}, "mode='paper' is not known; use strict or top-w"),
        ({"routing_scale": "half"}, "routing_scale='half'"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        RoutingOptions(**{"n_clusters": 3, "window": 4} | options)


def test_default_sizes():
    assert RoutingOptions.sizes_for(4096) == (64, 64)
    with pytest.raises(ValueError, match="n=0"):
        RoutingOptions.sizes_for(0)


def test_bad_inputs():
    heads = _heads()
    q = _vectors(5)
    with pytest.raises(ValueError, match="takes no k"):
        heads(q, q, q)
    with pytest.raises(ValueError, match="takes a k"):
        _heads(RoutingOptions(3, 4, share_qk=False))(q, None, q)
    with pytest.raises(ValueError, match="without a single token"):
        heads(q, None, q, torch.zeros(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="not all finite"):
        heads(q / 0, None, q)
    with pytest.raises(RuntimeError, match="init_centroids"):
        RoutingHeads(2, 4, RoutingOptions(3, 4)).eval()(q, None, q)
