import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.layers.routing.cluster_attention import (
    cluster_attention,
    cluster_ranks,
    naive_cluster_attention,
)
from shoestring.layers.routing.relative_tables import RelativeTables


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def _inputs(n, seed, dim=3):
    generator = _generator(seed)
    return [
        torch.randn(2, 2, n, dim, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)
    ]


def _valid(n, seed):
    valid = torch.rand(2, n, generator=_generator(seed)) < 0.6
    valid[:, seed % n] = True
    return valid


def _same(out, expected, inputs):
    torch.testing.assert_close(out, expected, rtol=1e-8, atol=1e-9)
    weight = torch.randn(out.shape, dtype=out.dtype, generator=_generator(9))
    ours = torch.autograd.grad((out * weight).sum(), inputs, allow_unused=True)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
        else:
            assert a is None or not a.any()
            assert b is None or not b.any()


@given(
    n=st.integers(1, 17),
    clusters=st.integers(1, 4),
    w=st.integers(1, 5),
    mask_self=st.booleans(),
    ragged=st.booleans(),
    tables=st.booleans(),
    seed=st.integers(0, 99),
)
def test_clusters_equal_the_loop(n, clusters, w, mask_self, ragged, tables, seed):
    inputs = _inputs(n, seed)
    valid = _valid(n, seed) if ragged else None
    cluster = torch.randint(clusters, (2, 2, n), generator=_generator(seed))
    relative = RelativeTables(2, 3).double() if tables else None
    settings = {"scale": 0.7, "mask_self": mask_self, "valid": valid, "relative": relative}
    out = cluster_attention(*inputs, cluster, clusters, w, **settings)
    leaves = inputs + (list(relative.parameters()) if relative else [])
    _same(out, naive_cluster_attention(*inputs, cluster, w, **settings), leaves)


@given(n=st.integers(1, 30), clusters=st.integers(1, 5), seed=st.integers(0, 99))
def test_ranks_count_the_earlier_tokens_of_a_cluster(n, clusters, seed):
    cluster = torch.randint(clusters, (2, 1, n), generator=_generator(seed))
    earlier = (cluster[..., None] == cluster[..., None, :]).tril(-1).sum(-1)
    assert torch.equal(cluster_ranks(cluster, cluster.argsort(dim=-1, stable=True)), earlier)
