"""One decoded token over a secret cache: the plain selection, the plain output, and the bytes of the closed
form."""

import numpy as np
import pytest
import torch
from tests.generation.secret.sharing import opened, shared

from shoestring.generation.clusters import ClusterOptions, LinearSimilarity, cluster_bounds, mpcache_select
from shoestring.generation.secret.cost import Cost, cost_model
from shoestring.generation.secret.decode_step import (
    attend_all,
    attend_cache,
    attend_scores,
    decode_attention,
)
from shoestring.generation.secret.ranking import quick_select_rows, ranked_rows, shuffled_rows
from shoestring.generation.secret.secret_cache import SecretCache, Static, static_eviction
from shoestring.generation.secret.shares import combine
from shoestring.generation.secret.step_cost import (
    StepShape,
    append_cost,
    attend_all_cost,
    attend_cache_cost,
    attend_scores_cost,
    bounds_cost,
    choose_cost,
)
from shoestring.models.protocols import CacheCannot

SMALL = ClusterOptions(coarse=8, fine=4)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def representatives(k, size, alpha=0.6):
    low, high = cluster_bounds(k[:, : k.shape[1] // size * size], size)
    return alpha * high + (1 - alpha) * low


def lap(engine, start):
    counters = engine.channel.counters
    return counters.sent_bytes - start.nbytes, start.rounds, counters.rounds


def now(engine):
    return Cost(engine.channel.counters.rounds, engine.channel.counters.sent_bytes)


def full_program(engine, q, k, v):
    cache = SecretCache(engine, 1, None)
    cache.append(0, k, v)
    start = now(engine)
    return attend_all(engine, cache, 0, q), lap(engine, start)


def chosen_program(engine, q, k, v, fine, coarse, options, top_rows, attend):
    cache = SecretCache(engine, 1, options)
    cache.preset(0, k, v, fine, coarse)
    start = now(engine)
    found = decode_attention(engine, cache, 0, q, top_rows=top_rows, attend=attend)
    first = lap(engine, start)
    start = now(engine)
    again = decode_attention(engine, cache, 0, q, chosen=found.chosen, attend=attend)
    return found.out, found.chosen, first, again.out, lap(engine, start)


def grown_program(engine, q, k, v, options):
    """Tokens come in pieces, and the cache makes the bounds by itself."""
    cache = SecretCache(engine, 1, options)
    assert cache.length(0) == 0
    for piece in (slice(0, 17), slice(17, 18), slice(18, k.shape[-2])):
        cache.append(0, k[..., piece, :], v[..., piece, :])
    assert cache.length(0) == k.shape[-2]
    held = cache.layer(0)
    fine, coarse = (engine.matmul(q, operand.T) for operand in (held.fine, held.coarse))
    return fine, coarse, decode_attention(engine, cache, 0, q).out


def plain(q, k, v, mask=None):
    scores = q @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], -torch.inf)
    return (scores.softmax(-1) @ v).numpy()


def assert_cost(group, laps, expected):
    assert sum(sent for sent, _, _ in laps) == expected.nbytes
    rounds = max(ended for _, _, ended in laps) - max(began for _, began, _ in laps)
    assert rounds == expected.rounds if group.setting.parties == 2 else rounds <= expected.rounds


@pytest.mark.parametrize(
    ("heads", "queries", "dim", "tokens"), [(1, 1, 1, 2), (2, 3, 8, 37), (3, 1, 64, 100)]
)
def test_attention_over_everything(group, heads, queries, dim, tokens):
    q, k, v = (
        noise(heads, queries, dim) * dim**-0.5,
        noise(heads, tokens, dim, seed=1),
        noise(heads, tokens, dim),
    )
    results = group.run(full_program, shared(group, q, k, v)).results
    assert np.abs(opened(group, [out for out, _ in results]) - plain(q, k, v)).max() < 2e-3
    expected = attend_all_cost(cost_model(group.setting.parties), StepShape(heads, queries, dim), tokens)
    assert_cost(group, [spent for _, spent in results], expected)


@pytest.mark.parametrize("top_rows", [shuffled_rows, ranked_rows, quick_select_rows])
@pytest.mark.parametrize("attend", [attend_scores, attend_cache])
@pytest.mark.parametrize("tokens", [37, 64])
def test_attention_over_chosen_clusters(group, top_rows, attend, tokens):
    heads, queries, dim = 2, 3, 8
    q, k, v = (
        noise(heads, queries, dim) * dim**-0.5,
        noise(heads, tokens, dim, seed=4),
        noise(heads, tokens, dim),
    )
    inputs = shared(group, q, k, v, representatives(k, 4), representatives(k, 8))
    results = group.run(chosen_program, inputs, options=SMALL, top_rows=top_rows, attend=attend).results
    mask = mpcache_select(q.sum(1), k, SMALL)
    for place in (0, 3):
        assert np.abs(opened(group, [r[place] for r in results]) - plain(q, k, v, mask)).max() < 2e-3
    marks = combine([r[1] for r in results])
    assert np.array_equal(np.sort(marks, -1)[..., -1], np.ones(marks.shape[:2]))
    assert np.array_equal(marks.sum(1), mask[:, 4 : 4 * (marks.shape[-1] + 1) : 4].numpy())
    model, shape, plan = cost_model(group.setting.parties), StepShape(heads, queries, dim), SMALL.plan(tokens)
    attended = (attend_scores_cost if attend is attend_scores else attend_cache_cost)(model, shape, plan)
    if top_rows is not quick_select_rows:
        chosen = choose_cost(model, shape, plan, one_hot=top_rows is ranked_rows)
        assert_cost(group, [r[2] for r in results], chosen + attended)
    # A choice that is used again costs nothing.
    assert_cost(group, [r[4] for r in results], attended)


def test_two_hundred_choices_are_those_of_the_plain_rules(group):
    q, k, v = noise(200, 1, 8), noise(200, 150, 8, seed=1), noise(200, 150, 8, seed=2)
    options = ClusterOptions()
    inputs = shared(group, q, k, v, representatives(k, 16), representatives(k, 32))
    results = group.run(
        chosen_program, inputs, options=options, top_rows=shuffled_rows, attend=attend_scores
    ).results
    found = combine([r[1] for r in results]).sum(1)
    expected = mpcache_select(q[:, 0], k, options)[:, 16 : 16 * 9 : 16].numpy()
    scores = LinearSimilarity()
    clear = torch.ones(200, dtype=torch.bool)
    for size in (16, 32):
        ordered = scores(q[:, 0], *cluster_bounds(k, size)).sort(-1).values
        clear &= (ordered.diff(dim=-1) > 1e-3).all(-1)
    assert clear.sum() > 150
    assert np.array_equal(found[clear], expected[clear])


def test_shares_of_one_read_everything(group):
    q, k, v = noise(2, 1, 8), noise(2, 40, 8, seed=1), noise(2, 40, 8)
    options = ClusterOptions(rho_coarse=1.0, rho_fine=1.0, coarse=8, fine=4)
    inputs = shared(group, q, k, v, representatives(k, 4), representatives(k, 8))
    results = group.run(
        chosen_program, inputs, options=options, top_rows=shuffled_rows, attend=attend_scores
    ).results
    assert all(r[1] is None for r in results)
    assert np.abs(opened(group, [r[0] for r in results]) - plain(q, k, v)).max() < 2e-3


def test_a_cache_that_grows_makes_the_bounds_of_its_clusters(group):
    q, k, v = noise(2, 1, 3), noise(2, 45, 3, seed=7), noise(2, 45, 3)
    results = group.run(grown_program, shared(group, q, k, v), options=SMALL).results
    for place, size in ((0, 4), (1, 8)):
        expected = (q @ representatives(k, size).mT).numpy()
        np.testing.assert_allclose(opened(group, [r[place] for r in results], 32), expected, atol=2e-3)
    expected = plain(q, k, v, mpcache_select(q[:, 0], k, SMALL))
    assert np.abs(opened(group, [r[2] for r in results]) - expected).max() < 2e-3


def appended_program(engine, k, v, options):
    cache = SecretCache(engine, 1, options)
    cache.append(0, k[..., :7, :], v[..., :7, :])
    start = now(engine)
    cache.append(0, k[..., 7:, :], v[..., 7:, :])
    return lap(engine, start)


def test_bytes_of_a_full_cluster_are_those_of_the_closed_form(group):
    """The token that fills the second fine cluster, and with it the first coarse one."""
    k = noise(2, 8, 3)
    results = group.run(appended_program, shared(group, k, k), options=SMALL).results
    model, shape = cost_model(group.setting.parties), StepShape(2, 1, 3)
    width = 2 * 2 * 3
    pair = model.maximum(width, 2) + model.truncate(width // 2) + model.fix(width // 2)
    expected = append_cost(model, shape).nbytes + bounds_cost(model, shape, 4).nbytes + pair.nbytes / 2
    assert sum(sent for sent, _, _ in results) == expected


def evicted_program(engine, importance, kv, keep, mode, size=16, allow_leak=False):
    return static_eviction(engine, importance, kv, keep, mode, size=size, allow_leak=allow_leak)


def test_static_eviction_keeps_the_order(group):
    importance, kv = noise(24).abs(), noise(2, 24, 3, seed=1)
    by_token = sorted(importance.topk(8).indices.tolist())
    runs = sorted(importance.view(6, 4).sum(1).topk(2).indices.tolist())
    by_run = [4 * run + i for run in runs for i in range(4)]
    for mode, kept in ((Static.ONEHOT, by_token), (Static.CLUSTER, by_run), (Static.OPEN, by_token)):
        found = group.run(
            evicted_program, shared(group, importance, kv), keep=8, mode=mode, size=4, allow_leak=True
        )
        np.testing.assert_allclose(opened(group, found.results), kv[:, kept].numpy(), atol=2**-15)


def leaked_program(engine, importance, kv):
    with pytest.raises(PermissionError, match="allow_leak=True"):
        static_eviction(engine, importance, kv, 2, Static.OPEN)
    with pytest.raises(ValueError, match="multiples of size=16"):
        static_eviction(engine, importance, kv, 2, Static.CLUSTER)
    cache = SecretCache(engine, 1, None)
    with pytest.raises(CacheCannot, match="evict"):
        cache.evict(0, [0])
    with pytest.raises(ValueError, match="layer 0 of this secret cache is empty"):
        attend_all(engine, cache, 0, importance)
    cache = SecretCache(engine, 1, SMALL)
    cache.preset(0, kv, kv, kv[..., :1, :], kv[..., :0, :])
    with pytest.raises(CacheCannot, match="append: layer 0 was preset"):
        cache.append(0, kv, kv)
    with pytest.raises(ValueError, match="coarse=12 must be twice fine=4"):
        SecretCache(engine, 1, ClusterOptions(coarse=12, fine=4))


def test_bad_input_is_refused(group):
    group.run(leaked_program, shared(group, noise(6), noise(1, 6, 2)))
