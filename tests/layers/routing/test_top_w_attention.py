import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.layers.routing.relative_tables import RelativeTables
from shoestring.layers.routing.top_w_attention import naive_top_w_attention, top_w, top_w_attention


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def _inputs(n, m, seed, dim=3):
    generator = _generator(seed)
    return [
        torch.randn(2, 2, length, dim, generator=generator, dtype=torch.float64).requires_grad_()
        for length in (n, m, m)
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
    n=st.integers(1, 11),
    clusters=st.integers(1, 4),
    share=st.floats(0, 1),
    causal=st.booleans(),
    mask_self=st.booleans(),
    ragged=st.booleans(),
    tables=st.booleans(),
    seed=st.integers(0, 99),
)
def test_top_w_equals_the_loop(n, clusters, share, causal, mask_self, ragged, tables, seed):
    inputs = _inputs(n, n, seed)
    valid = _valid(n, seed) if ragged else None
    scores = torch.randn(2, 2, clusters, n, generator=_generator(seed + 1))
    rows = top_w(scores, max(1, int(share * n)), valid)
    relative = RelativeTables(2, 3).double() if tables else None
    settings = {"scale": 0.7, "causal": causal, "mask_self": mask_self, "valid": valid, "relative": relative}
    out, hits = top_w_attention(*inputs, rows, **settings)
    leaves = inputs + (list(relative.parameters()) if relative else [])
    _same(out, naive_top_w_attention(*inputs, rows, **settings), leaves)
    assert not out[(hits == 0)].any()


@given(
    n=st.integers(1, 9),
    m=st.integers(1, 11),
    clusters=st.integers(1, 4),
    ragged=st.booleans(),
    tables=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_memory_equals_the_loop(n, m, clusters, ragged, tables, seed):
    inputs = _inputs(n, m, seed)
    valid, memory_valid = (_valid(n, seed), _valid(m, seed)) if ragged else (None, None)
    rows = top_w(torch.randn(2, 2, clusters, n, generator=_generator(seed)), (n + 1) // 2, valid)
    columns = top_w(torch.randn(2, 2, clusters, m, generator=_generator(seed)), (m + 1) // 2, memory_valid)
    relative = RelativeTables(2, 3).double() if tables else None
    settings = {"scale": 0.7, "valid": valid, "memory_valid": memory_valid, "relative": relative}
    out, _ = top_w_attention(*inputs, rows, columns, **settings)
    _same(out, naive_top_w_attention(*inputs, rows, columns, **settings), inputs)


def test_a_cluster_sees_no_later_position_and_no_padding():
    scores = torch.randn(2, 2, 3, 12, generator=_generator(0))
    valid = _valid(12, 1)
    rows = top_w(scores, 4, valid)
    assert (rows.diff(dim=-1) > 0).all()
    q = torch.randn(2, 2, 12, 3, dtype=torch.float64)
    v = torch.eye(12, dtype=torch.float64).expand(2, 2, 12, 12).contiguous()
    out, _ = top_w_attention(q, q, v, rows, scale=1.0, causal=True, valid=valid)  # out[i, j]: weight of j
    assert not out.triu(1).any()
    assert not out.transpose(-1, -2)[~valid[:, None].expand(2, 2, 12)].any()
    assert not out[~valid[:, None].expand(2, 2, 12)].any()
    assert out.any()


def test_ties_are_kept_in_order():
    rows = top_w(torch.zeros(1, 1, 2, 9, dtype=torch.bfloat16), 5)
    assert (rows.diff(dim=-1) > 0).all()
