"""Which clusters a query reads: bounds, similarity, the two levels, and what is always there."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.generation.clusters import (
    ClusterOptions,
    ClusterTable,
    InvertedScores,
    LinearSimilarity,
    RandomScores,
    choose_clusters,
    chosen_slots,
    cluster_bounds,
    mpcache_select,
    quest_bound,
)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fast(q, k, options):
    plan = options.plan(k.shape[1])
    if plan is None:
        return torch.ones(k.shape[:2], dtype=torch.bool)
    low, high = cluster_bounds(k, options.fine)
    chosen = choose_clusters(q, low, high, plan, LinearSimilarity(options.alpha))
    slots = chosen_slots(chosen, plan)
    return torch.zeros(k.shape[:2], dtype=torch.bool).scatter(1, slots, True)


@given(
    heads=st.integers(1, 3),
    tokens=st.integers(1, 230),
    dim=st.sampled_from([1, 3, 8]),
    sizes=st.sampled_from([(32, 16), (8, 4), (6, 2), (3, 1)]),
    shares=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)),
    seed=st.integers(0, 99),
)
def test_batched_choice_follows_the_rules(heads, tokens, dim, sizes, shares, seed):
    options = ClusterOptions(0.6, *shares, *sizes)
    q, k = noise(heads, dim, seed=seed), noise(heads, tokens, dim, seed=seed + 1)
    expected = mpcache_select(q, k, options)
    assert torch.equal(fast(q, k, options), expected)
    plan = options.plan(tokens)
    if plan is None:
        assert tokens < 2 * sizes[0]
        assert expected.all()
        return
    assert (expected.sum(1) == plan.attended).all()
    assert expected[:, : sizes[1]].all()
    assert expected[:, (plan.fine - 1) * sizes[1] :].all()


def test_the_numbers_are_those_of_the_rules():
    plan = ClusterOptions().plan(384)
    assert (plan.coarse, plan.fine, plan.keep_coarse, plan.keep_fine) == (12, 24, 6, 4)
    assert plan.always == (1, 22)
    assert plan.candidates == 14
    assert plan.attended == 4 * 16 + 16 + 16
    assert ClusterOptions().plan(63) is None
    # One token more than whole clusters: it is a cluster by itself, of both sizes.
    plan = ClusterOptions().plan(161)
    assert (plan.coarse, plan.fine, plan.tail, plan.always) == (6, 11, 1, (1,))
    # Half of four coarse clusters are the two inner ones: there is nothing to choose among them.
    plan = ClusterOptions().plan(97)
    assert (plan.coarse, plan.fine, plan.always) == (4, 7, (1, 2, 3, 4, 5))
    assert plan.all_coarse


@given(tokens=st.integers(1, 70), size=st.sampled_from([1, 2, 5, 16]), seed=st.integers(0, 20))
def test_bounds_are_those_of_the_cluster(tokens, size, seed):
    k = noise(2, tokens, 3, seed=seed)
    low, high = cluster_bounds(k, size)
    parts = k.split(size, 1)
    assert torch.equal(low, torch.stack([part.amin(1) for part in parts], 1))
    assert torch.equal(high, torch.stack([part.amax(1) for part in parts], 1))


def test_linear_similarity_lies_between_the_bounds_and_the_quest_bound_above_all_keys():
    q, k = noise(4, 8, seed=1), noise(4, 50, 8, seed=2)
    low, high = cluster_bounds(k, 16)
    torch.testing.assert_close(LinearSimilarity(0.0)(q, low, high), (low * q[:, None]).sum(-1))
    torch.testing.assert_close(LinearSimilarity(1.0)(q, low, high), (high * q[:, None]).sum(-1))
    torch.testing.assert_close(LinearSimilarity(1.0)(q.abs(), low, high), quest_bound(q.abs(), low, high))
    products = (k @ q.unsqueeze(-1))[..., 0]
    for c, part in enumerate(products.split(16, 1)):
        assert (quest_bound(q, low, high)[:, c, None] >= part - 1e-12).all()


@pytest.mark.parametrize("tokens", [64, 150, 230])
def test_with_all_coarse_clusters_the_hierarchy_is_flat(tokens):
    q, k = noise(3, 8), noise(3, tokens, 8, seed=1)
    options = ClusterOptions(rho_coarse=1.0)
    mask = mpcache_select(q, k, options)
    low, high = cluster_bounds(k, 16)
    scores, n = LinearSimilarity()(q, low, high), math.ceil(tokens / 16)
    for head in range(3):
        inner = scores[head, 1:-1].topk(options.plan(tokens).keep_fine).indices + 1
        read = {0, n - 1, *inner.tolist()}
        assert mask[head].tolist() == [j // 16 in read for j in range(tokens)]


def test_with_all_shares_at_one_everything_is_read():
    q, k = noise(2, 8), noise(2, 201, 8, seed=1)
    assert mpcache_select(q, k, ClusterOptions(rho_coarse=1.0, rho_fine=1.0)).all()


def test_controls_choose_as_many_clusters():
    q, k = noise(2, 8), noise(2, 300, 8, seed=1)
    low, high = cluster_bounds(k, 16)
    plan = ClusterOptions().plan(300)
    best = choose_clusters(q, low, high, plan, LinearSimilarity())
    for scorer in (RandomScores(3), InvertedScores(LinearSimilarity()), quest_bound):
        other = choose_clusters(q, low, high, plan, scorer)
        assert torch.equal(other.sum(1), best.sum(1))
    worst = choose_clusters(q, low, high, plan, InvertedScores(LinearSimilarity()))
    assert not torch.equal(worst, best)


def test_a_table_follows_what_is_appended_and_taken_back():
    k = noise(1, 2, 60, 3)
    table = ClusterTable(8)
    for tokens in (13, 14, 24, 25, 60, 31, 7, 9):
        table.follow(k[:, :, :tokens])
        low, high = cluster_bounds(k[:, :, :tokens], 8)
        assert table.tokens == tokens
        assert torch.equal(table.low, low)
        assert torch.equal(table.high, high)


def test_bad_options_are_refused():
    for bad, message in (
        ({"alpha": 1.1}, "alpha=1.1"),
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"rho_coarse": 0.0}, "rho_coarse=0.0"),
        ({"rho_fine": 1.5}, "rho_fine=1.5"),
        ({"coarse": 30}, "coarse=30 must be a multiple of fine=16, e.g. 32"),
        ({"fine": 0}, "fine=0"),
    ):
        with pytest.raises(ValueError, match=message):
            ClusterOptions(**bad)
