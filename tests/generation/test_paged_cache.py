"""Blocks of a paged cache: who holds them, when they are copied, when they are free again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.generation.block_allocator import BlockAllocator, FreedBlock, OutOfBlocks
from shoestring.generation.paged_cache import PagedCache
from shoestring.numbers.block_format import BlockFormat
from shoestring.numbers.token_cache_format import TokenCacheFormat

from .cache_kinds import HEAD_DIM, noise

PLAIN = BlockFormat(4)


def filled(tokens, batch=1, form=PLAIN):
    cache = PagedCache(1, batch, 2, HEAD_DIM, form)
    pos = torch.arange(tokens).expand(batch, -1)
    cache.append(0, noise(batch, 2, tokens, HEAD_DIM), noise(batch, 2, tokens, HEAD_DIM, seed=1), pos)
    return cache


def append(cache, tokens, seed=2):
    pos = cache.next_pos[:, None] + torch.arange(tokens)
    shape = (cache.batch, 2, tokens, HEAD_DIM)
    cache.append(0, noise(*shape, seed=seed), noise(*shape, seed=seed + 1), pos)


def test_forks_share_blocks_until_they_write():
    cache = filled(10)
    store = cache.layers[0]
    before = cache.view(0).k.clone()
    held, size = store.blocks.n_blocks - store.blocks.n_free, cache.nbytes()
    cache.reorder(torch.tensor([0, 0, 0]))
    assert store.tables[0] == store.tables[1] == store.tables[2]
    assert store.blocks.n_blocks - store.blocks.n_free == held == 3
    assert cache.parts()["k"] + cache.parts()["v"] <= size
    append(cache, 1)
    # Two whole blocks are still shared, the one that was written to is everyone's own.
    assert [len({table[i] for table in store.tables}) for i in range(3)] == [1, 1, 3]
    assert torch.equal(cache.view(0).k[:, :, :10], before.expand(3, -1, -1, -1))
    assert not torch.equal(cache.view(0).k[0, :, 10], cache.view(0).k[1, :, 10])


def test_what_a_fork_drops_stays_with_the_other():
    cache = filled(10)
    before = cache.view(0).v.clone()
    mark = cache.mark()
    cache.reorder(torch.tensor([0, 0]))
    append(cache, 7)
    cache.rollback(mark)
    assert torch.equal(cache.view(0).v, before.expand(2, -1, -1, -1))
    cache.evict(0, torch.tensor([[0, 1, 2, 3, 9], [4, 5, 6, 7, 8]]))
    assert torch.equal(cache.view(0).v[0], before[0, :, [0, 1, 2, 3, 9]])
    assert torch.equal(cache.view(0).v[1], before[0, :, 4:9])


def test_a_block_that_was_freed_is_refused():
    cache = filled(10)
    store = cache.layers[0]
    store.blocks.release(store.tables[0][1])
    with pytest.raises(FreedBlock, match=f"block {store.tables[0][1]} is not held"):
        cache.view(0)


def test_evicting_rounds_nothing_twice():
    cache = filled(40, form=BlockFormat(4, TokenCacheFormat(4, 4)))
    before = cache.view(0)
    keep = torch.arange(1, 40, 3)
    k, v = before.k[:, :, keep], before.v[:, :, keep]
    cache.evict(0, keep[None])
    assert torch.equal(cache.view(0).k, k)
    assert torch.equal(cache.view(0).v, v)


def test_numbers_without_codes_leave_the_cache_as_it_was():
    cache = filled(5, form=BlockFormat(4, TokenCacheFormat(8, 8)))
    bad = torch.full((1, 2, 1, HEAD_DIM), float("nan"))
    with pytest.raises(ValueError, match="cached values hold NaN"):
        cache.append(0, noise(1, 2, 1, HEAD_DIM), bad, torch.tensor([[5]]))
    assert cache.length(0).tolist() == [5]


def test_bytes_of_blocks_are_those_that_the_format_states():
    form = BlockFormat(16, TokenCacheFormat(8, 4))
    cache = PagedCache(3, 2, 2, HEAD_DIM, form, dtype=torch.float16, capacity=50)
    parts = cache.parts()
    blocks = 2 * form.blocks_for(50)
    expected = blocks * form.block_bytes(2, HEAD_DIM, torch.float16, n_layers=3)
    assert parts["k"] + parts["v"] + parts["scales"] == expected


@given(st.lists(st.tuples(st.sampled_from("tsr"), st.integers(0, 5)), max_size=60))
def test_the_allocator_counts_holders(steps):
    blocks, holders = BlockAllocator(6), [0] * 6
    for step, block in steps:
        if step == "t":
            if 0 not in holders:
                with pytest.raises(OutOfBlocks, match="all 6 blocks"):
                    blocks.take()
                continue
            taken = blocks.take()
            assert holders[taken] == 0
            holders[taken] = 1
        elif holders[block] == 0:
            with pytest.raises(FreedBlock):
                (blocks.share if step == "s" else blocks.release)(block)
        elif step == "s":
            blocks.share(block)
            holders[block] += 1
        else:
            holders[block] -= 1
            assert blocks.release(block) == (holders[block] == 0)
        assert blocks.n_free == holders.count(0)
        assert [blocks.holders(i) for i in range(6)] == holders


def test_a_negative_number_of_blocks_is_refused():
    with pytest.raises(ValueError, match="n_blocks=-1"):
        BlockAllocator(-1)
