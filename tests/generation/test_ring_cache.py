"""The ring keeps what a window reaches, in a room that does not grow."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.ring_cache import RingCache
from shoestring.layers.attention import attend
from shoestring.layers.attention_masks import Causal


def tokens(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(1, 2, n, 8, generator=generator, dtype=torch.float64) for _ in range(2))


@given(
    window=st.integers(1, 9), slack=st.integers(1, 5), margin=st.integers(1, 6),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=30), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_windowed_attention_is_that_over_all_tokens_with_drafts_taken_back(
    window, slack, margin, sizes, seed
):
    ring = RingCache(1, 1, 2, 8, window, slack, margin=margin, dtype=torch.float64)
    dense = DenseCache(1, 1, 2, 8, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for index, size in enumerate(sizes):
        n = min(size, margin)
        draft = n <= slack and index % 2 == 1
        mark = ring.mark() if draft else None
        pos = dense.next_pos[:, None] + torch.arange(n)
        k, v = tokens(n, seed + index)
        q = torch.randn(1, 2, n, 8, generator=generator, dtype=torch.float64)
        before = dense.mark()
        found = []
        for cache in (ring, dense):
            cache.append(0, k, v, pos)
            view = cache.view(0)
            found.append(attend(q, view, Causal(pos, view.pos), 0.3, window + 1).out)
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
        if draft:
            kept = torch.arange(n // 2)[None] * 2
            kept = kept[:, :1] if kept.shape[1] and index % 4 == 1 else torch.arange(n)[None, : n - 1]
            ring.keep_path(mark, kept)
            dense.keep_path(before, kept)
        assert ring.layers[0].table.capacity <= ring.size
        assert ring.next_pos.tolist() == dense.next_pos.tolist()


def test_bytes_are_the_same_at_one_and_at_eight_thousand_tokens():
    sizes = []
    for context in (1024, 8192):
        ring = RingCache(1, 1, 2, 8, 512, 17)
        for at in range(0, context, 256):
            k, v = (t.float() for t in tokens(256, at))
            ring.append(0, k, v, torch.arange(at, at + 256)[None])
        assert ring.length(0) >= 512
        sizes.append(ring.nbytes())
    assert sizes[0] == sizes[1]
    full = DenseCache(1, 1, 2, 8, capacity=4096)
    assert sizes[0] <= 0.16 * full.nbytes()


def test_a_step_that_brings_more_than_the_ring_holds_keeps_the_last():
    ring = RingCache(1, 1, 2, 8, 4, 2, margin=3, dtype=torch.float64)
    k, v = tokens(20, 0)
    slots = ring.append(0, k, v, torch.arange(20)[None])
    assert slots.tolist() == [[-1] * 14 + list(range(6))]
    assert ring.view(0).pos.tolist() == [[list(range(14, 20))]]
    assert ring.next_pos.tolist() == [20]
    assert torch.equal(ring.clone().view(0).k, k[:, :, 14:])


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="slack=0"):
        RingCache(1, 1, 2, 8, 4, 0)
