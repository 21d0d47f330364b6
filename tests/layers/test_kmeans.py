import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from shoestring.layers.kmeans import (
    KMeansOptions,
    OnlineKMeans,
    distance_scores,
    naive_update,
    smoothed_counts,
    update_after_step,
)


def _tokens(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _step(kmeans, x, valid=None):
    kmeans.observe(x, kmeans.assign(x), valid)
    kmeans.update()


@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    n=st.integers(1, 13),
    clusters=st.integers(1, 7),
    dim=st.integers(1, 5),
    ragged=st.booleans(),
    decay=st.sampled_from([0.0, 0.5, 0.999]),
)
def test_an_update_equals_the_loop(batch, heads, n, clusters, dim, ragged, decay):
    options = KMeansOptions(decay=decay, reseed_below=0.0)
    kmeans = OnlineKMeans(clusters, dim, n_heads=heads, options=options).double()
    x = _tokens(batch, heads, n, dim, dtype=torch.float64)
    valid = torch.arange(n) < torch.randint(1, n + 1, (batch, 1)) if ragged else None
    state = kmeans.centroids.clone(), kmeans.counts.clone(), kmeans.sums.clone()
    for _ in range(2):
        _step(kmeans, x, valid)
        state = naive_update(x, *state, options, valid)
    for ours, theirs in zip((kmeans.centroids, kmeans.counts, kmeans.sums), state, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_three_blobs_are_found():
    blobs = torch.eye(3, 8)
    generator = torch.Generator().manual_seed(3)
    options = KMeansOptions(decay=0.99)
    kmeans = OnlineKMeans(3, 8, options=options)
    # Each start is 60 degrees off its blob, along axes of its own: that blob stays the nearest.
    start = 0.5 * blobs + 0.75**0.5 * torch.eye(8)[3:6]
    kmeans.centroids.copy_(start * 8**0.5)
    kmeans.sums.copy_(kmeans.centroids)
    for _ in range(200):
        blob = torch.randint(3, (30,), generator=generator)
        noisy = blobs[blob] + 0.1 * torch.randn(30, 8, generator=generator)
        _step(kmeans, F.normalize(noisy, dim=-1)[None, None] * 8**0.5)
    cosine = F.cosine_similarity(kmeans.centroids[0], blobs, dim=-1)
    assert (cosine > 0.95).all()


def test_no_gradient_reaches_the_centroids_but_tokens_are_pulled():
    kmeans = OnlineKMeans(4, 3, n_heads=2)
    x = _tokens(2, 2, 6, 3).requires_grad_()
    assignment = kmeans.assign(x)
    kmeans.commitment(x, assignment).backward()
    assert not list(kmeans.parameters())
    assert kmeans.centroids.grad is None
    nearest = torch.stack([kmeans.centroids[h][assignment[:, h]] for h in range(2)], 1)
    torch.testing.assert_close(x.grad, 2 * (x.detach() - nearest) / x.numel())


def test_commitment_leaves_padding_out():
    kmeans = OnlineKMeans(4, 3, n_heads=2)
    x = _tokens(1, 2, 6, 3)
    valid = torch.tensor([[True, True, False, True, False, False]])
    kept = x[:, :, valid[0]]
    expected = kmeans.commitment(kept, kmeans.assign(kept))
    torch.testing.assert_close(kmeans.commitment(x, kmeans.assign(x), valid), expected)


def test_batches_of_one_step_add_up():
    options = KMeansOptions(decay=0.9)
    joined, split = OnlineKMeans(4, 3, options=options), OnlineKMeans(4, 3, options=options)
    x = _tokens(4, 1, 5, 3)
    _step(joined, x)
    for part in x.split(2):
        split.observe(part, split.assign(part))
    split.update()
    torch.testing.assert_close(split.centroids, joined.centroids)
    before = split.centroids.clone()
    split.update()
    assert torch.equal(split.centroids, before)


class _Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.kmeans = nn.Linear(3, 3), OnlineKMeans(4, 3)

    def forward(self, x):
        y = self.linear(x)
        self.kmeans.observe(y, self.kmeans.assign(y))
        return y


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputed_pass_is_not_counted_twice(reentrant):
    layer, x = _Layer(), _tokens(2, 1, 5, 3).requires_grad_()
    checkpoint(layer, x, use_reentrant=reentrant).sum().backward()
    assert layer.kmeans._pending.counts.sum() == 10


def test_the_optimizer_moves_the_centroids_once_a_step():
    layer = _Layer()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    handle = update_after_step(optimizer, layer)
    before = layer.kmeans.centroids.clone()
    for _ in range(2):
        layer(_tokens(2, 1, 5, 3)).sum().backward()
    assert torch.equal(layer.kmeans.centroids, before)
    optimizer.step()
    assert int(layer.kmeans.updates) == 1
    assert not torch.equal(layer.kmeans.centroids, before)
    handle.remove()
    layer(_tokens(2, 1, 5, 3)).sum().backward()
    optimizer.step()
    assert int(layer.kmeans.updates) == 1


def test_a_dead_cluster_starts_afresh_at_a_token():
    kmeans = OnlineKMeans(3, 2, options=KMeansOptions(decay=0.5))
    kmeans.centroids.copy_(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]]))
    kmeans.sums.copy_(kmeans.centroids)
    x = torch.tensor([[1.0, 0.1], [0.9, 0.0], [0.1, 1.0], [0.0, 0.8]])[None, None]
    seen = False
    for _ in range(30):
        _step(kmeans, x)
        seen = seen or torch.cdist(kmeans.centroids[:, 2], x[0, 0][None]).min() < 1e-3
    assert seen
    assert torch.isfinite(kmeans.centroids).all()


def test_smoothing_keeps_the_sum_and_lets_nothing_vanish():
    counts = torch.tensor([[0.0, 3.0, 5.0]])
    smoothed = smoothed_counts(counts, 1e-5)
    torch.testing.assert_close(smoothed.sum(), torch.tensor(8.0))
    assert (smoothed > 0).all()


def test_start_from_tokens():
    kmeans = OnlineKMeans(3, 2, n_heads=2)
    kmeans.init_centroids(_tokens(2, 2, 6, 2), iterations=0)
    x = _tokens(2, 2, 6, 2)
    for head in range(2):
        tokens = x[:, head].flatten(0, 1)
        near = torch.cdist(kmeans.centroids[head], tokens).min(-1).values
        assert not near.any()
        assert len(kmeans.centroids[head].unique(dim=0)) == 3


def test_iterations_lower_the_distance():
    x = _tokens(4, 1, 50, 2)
    losses = []
    for iterations in (0, 10):
        kmeans = OnlineKMeans(5, 2, score=distance_scores)
        kmeans.init_centroids(x, iterations)
        losses.append(kmeans.commitment(x, kmeans.assign(x)))
    assert losses[1] < losses[0]


def test_nearest_by_distance():
    kmeans = OnlineKMeans(5, 3, score=distance_scores)
    kmeans.centroids.mul_(torch.arange(1.0, 6.0)[:, None])
    x = _tokens(2, 1, 7, 3)
    expected = torch.cdist(x[:, 0], kmeans.centroids[0]).argmin(-1)
    assert torch.equal(kmeans.assign(x)[:, 0], expected)


def test_the_state_is_saved_and_a_model_in_half_precision_keeps_its_averages():
    kmeans = OnlineKMeans(4, 3)
    _step(kmeans, _tokens(2, 1, 5, 3))
    copy = OnlineKMeans(4, 3).eval()
    with pytest.raises(RuntimeError, match="init_centroids"):
        copy.check_ready()
    copy.load_state_dict(kmeans.state_dict())
    copy.check_ready()
    copy.bfloat16()
    assert torch.equal(copy.centroids, kmeans.centroids)
    assert copy.centroids.dtype == torch.float32


def test_runs_repeat_and_resume():
    one, other = OnlineKMeans(4, 3), OnlineKMeans(4, 3)
    for index in range(3):
        _step(one, _tokens(2, 1, 5, 3, seed=index))
    for index in range(3):
        fresh = OnlineKMeans(4, 3)
        fresh.load_state_dict(other.state_dict())
        other = fresh
        _step(other, _tokens(2, 1, 5, 3, seed=index))
    assert torch.equal(one.centroids, other.centroids)


def test_normalised_centroids_stay_so():
    kmeans = OnlineKMeans(4, 3, normalise=lambda mu: F.normalize(mu, dim=-1))
    _step(kmeans, _tokens(2, 1, 5, 3))
    torch.testing.assert_close(kmeans.centroids.norm(dim=-1), torch.ones(1, 4))


@pytest.mark.parametrize("name", ["n_clusters", "dim", "n_heads"])
def test_nothing_to_cluster(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be 1"):
        OnlineKMeans(**{"n_clusters": 2, "dim": 2, "n_heads": 1} | {name: 0})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"decay": 1.0}, "decay=1.0"), ({"eps": 0.0}, "eps=0.0"), ({"reseed_below": -0.1}, "reseed_below=-0.1")],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        KMeansOptions(**options)


def test_bad_tokens():
    kmeans = OnlineKMeans(4, 3)
    x = _tokens(1, 1, 3, 3)
    with pytest.raises(ValueError, match="3 tokens a head, fewer than n_clusters=4"):
        kmeans.init_centroids(x)
    with pytest.raises(ValueError, match="iterations=-1"):
        kmeans.init_centroids(x, -1)
    x[0, 0, 1, 2] = torch.nan
    with pytest.raises(ValueError, match="not all finite"):
        kmeans.assign(x)


def _share(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    kmeans = OnlineKMeans(4, 3, options=KMeansOptions(decay=0.9))
    _step(kmeans, _tokens(4, 1, 5, 3)[2 * rank : 2 * rank + 2])
    torch.save(kmeans.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_add_up_their_counts(tmp_path):
    torch.multiprocessing.spawn(_share, (str(tmp_path),), nprocs=2)
    whole = OnlineKMeans(4, 3, options=KMeansOptions(decay=0.9))
    _step(whole, _tokens(4, 1, 5, 3))
    for rank in range(2):
        part = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(part["centroids"], whole.centroids)
        torch.testing.assert_close(part["counts"], whole.counts)
