"""The tiered cache: what it reads back, what it holds, and attention from its codes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.generation.cache_kinds import noise

from shoestring.generation.tier_cache import TierCache, naive_tiered_attention, tiered_attention
from shoestring.generation.tier_group import CodedGroup
from shoestring.models.protocols import CacheCannot
from shoestring.numbers.tier_format import (
    channel_scales,
    decode_keys,
    decode_values,
    encode_keys,
    encode_values,
    group_bytes,
)

WIDTHS = st.sampled_from([2, 4, 8, 16])


def filled(seed=0, batch=1, heads=2, n=40, dim=8, dtype=torch.float32, lengths=None):
    """A cache of one layer, and what was put in; `lengths` of the samples where they differ."""
    cache = TierCache(1, batch, heads, dim, dtype=dtype)
    k, v = (noise(batch, heads, n, dim, seed=seed + i, dtype=dtype) for i in range(2))
    lengths = torch.full((batch,), n) if lengths is None else torch.tensor(lengths)
    store = torch.arange(n) < lengths[:, None]
    cache.append(0, k, v, torch.arange(n).expand(batch, -1), store)
    return cache, k, v


def oldest(cache, counts):
    width = max(counts)
    start = cache.store(0).grouped[:, :1]
    slots = start + torch.arange(width)
    return slots.masked_fill(torch.arange(width) >= torch.tensor(counts)[:, None], -1)


def random_tiers(batch, rows, n, widths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(widths)[torch.randint(len(widths), (batch, rows, n), generator=generator)]


@settings(max_examples=30)
@given(n=st.integers(1, 40), high=WIDTHS, low=WIDTHS, per_head=st.booleans(), seed=st.integers(0, 99))
def test_every_group_is_read_back_by_itself(n, high, low, per_head, seed):
    cache, k, v = filled(seed)
    tiers = random_tiers(1, 2 if per_head else 1, n, [high, low], seed)
    cache.recompress(0, oldest(cache, [n]), tiers)
    view = cache.view(0)
    assert view.pos.tolist() == [[list(range(40))]]
    assert torch.equal(view.k[:, :, n:], k[:, :, n:])
    for heads in [slice(0, 1), slice(1, 2)] if per_head else [slice(0, 2)]:
        flat_k, flat_v = (x[0, heads, :n].transpose(0, 1).flatten(1) for x in (k, v))
        found_k, found_v = (x[0, heads, :n].transpose(0, 1).flatten(1) for x in (view.k, view.v))
        c = channel_scales(flat_v)
        for bits in {high, low}:
            group = tiers[0, heads.start if per_head else 0] == bits
            if bits == 16 or not group.any():
                assert torch.equal(found_k[group], flat_k[group])
                assert torch.equal(found_v[group], flat_v[group])
                continue
            expected = decode_keys(*encode_keys(flat_k[group], bits), bits, int(group.sum()))
            assert torch.equal(found_k[group], expected)
            assert torch.equal(found_v[group], decode_values(*encode_values(flat_v[group], c, bits), c, bits))


@settings(max_examples=30)
@given(
    batch=st.integers(1, 2), heads=st.integers(1, 3), group=st.integers(1, 3), n=st.integers(1, 37),
    rows=st.integers(1, 4), widths=st.lists(WIDTHS, min_size=1, max_size=2), per_head=st.booleans(),
    evicts=st.booleans(), window=st.sampled_from([None, 5]), block=st.sampled_from([8, 1024]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_attention_from_codes_is_attention_over_what_they_stand_for(
    batch, heads, group, n, rows, widths, per_head, evicts, window, block, seed
):
    from shoestring.generation import tier_group as module

    lengths = [n, max(1, n - 3)][:batch]
    cache, _, _ = filled(seed, batch, heads, n, dtype=torch.float64, lengths=lengths)
    held = [length // 2 for length in lengths]
    tiers = random_tiers(batch, heads if per_head else 1, max(held), widths, seed)
    cache.recompress(0, oldest(cache, held), tiers)
    if evicts:
        keep = torch.arange(0, n, 2).expand(batch, heads if per_head else 1, -1)
        keep = keep.masked_fill(keep >= torch.tensor(lengths)[:, None, None], -1)
        cache.evict(0, keep if per_head else keep[:, 0])
    q = noise(batch, heads * group, rows, 8, seed=seed + 5, dtype=torch.float64)
    pos = torch.arange(n, n + rows).expand(batch, -1) - 1
    was, module.BLOCK_TOKENS = module.BLOCK_TOKENS, block
    try:
        out, tails = tiered_attention(q, cache, 0, pos, 0.3, window)
    finally:
        module.BLOCK_TOKENS = was
    expected = naive_tiered_attention(q, cache, 0, pos, 0.3, window)
    torch.testing.assert_close(out, expected.nan_to_num(), rtol=1e-6, atol=1e-7)
    assert [t.shape[1] for t in tails] == cache.store(0).tail.counts.amax(1).tolist()


@settings(max_examples=30)
@given(bits=WIDTHS, per_head=st.booleans(), seed=st.integers(0, 99))
def test_what_stays_after_eviction_is_not_rounded_again(bits, per_head, seed):
    cache, _, _ = filled(seed, batch=2)
    cache.recompress(0, oldest(cache, [25, 25]), random_tiers(2, 1, 25, [bits, 16], seed))
    before = cache.view(0)
    generator = torch.Generator().manual_seed(seed)
    rows = 2 if per_head else 1
    keep = torch.rand(2, rows, 40, generator=generator).argsort(-1)[..., :17].sort(-1).values
    cache.evict(0, keep if per_head else keep[:, 0])
    view = cache.view(0)
    index = keep.expand(-1, 2, -1)[..., None].expand(-1, -1, -1, 8)
    assert torch.equal(view.k, before.k.gather(2, index))
    assert torch.equal(view.v, before.v.gather(2, index))
    assert torch.equal(view.pos.expand(-1, rows, -1), keep.int())
    other = cache.clone()
    other.reorder(torch.tensor([1, 1, 0]))
    assert torch.equal(other.view(0).k, view.k[[1, 1, 0]])
    assert torch.equal(other.view(0).v, view.v[[1, 1, 0]])


def test_rolling_back_into_what_is_compressed_keeps_the_rest_as_it_is():
    cache, k, v = filled(n=20)
    mark = cache.mark()
    cache.append(0, k, v, torch.arange(20, 40)[None])
    cache.recompress(0, oldest(cache, [30]), random_tiers(1, 1, 30, [4, 2]))
    before = cache.view(0)
    cache.rollback(mark)
    view = cache.view(0)
    assert torch.equal(view.k, before.k[:, :, :20])
    assert torch.equal(view.v, before.v[:, :, :20])
    cache.append(0, k, v, torch.arange(20, 40)[None])
    assert torch.equal(cache.view(0).k[:, :, 20:], k)


def test_drafts_are_taken_back_and_reordered_in_the_tail():
    cache, k, _ = filled(n=20)
    cache.recompress(0, oldest(cache, [20]), 4)
    before, mark = cache.view(0), cache.mark()
    cache.append(0, k[:, :, :5], k[:, :, :5], torch.arange(20, 25)[None])
    cache.compact(0, torch.tensor([[3, 1]]))
    assert torch.equal(cache.view(0).k[:, :, 20:], k[:, :, [3, 1]])
    cache.rollback(mark)
    assert torch.equal(cache.view(0).k, before.k)
    cache.append(0, k[:, :, :5], k[:, :, :5], torch.arange(20, 25)[None])
    cache.recompress(0, oldest(cache, [5]), 4)
    with pytest.raises(CacheCannot, match="compact before that"):
        cache.compact(0, torch.tensor([[3, 1]]))


@pytest.mark.parametrize("high", [8, 4, 2])
def test_bytes_are_those_of_the_formats(high):
    cache, _, _ = filled(n=130, heads=3, dim=16)
    important = torch.arange(100) % 3 == 0
    cache.recompress(0, oldest(cache, [100]), torch.where(important, high, 2)[None, None])
    groups = [(high, 34), (2, 66)] if high > 2 else [(2, 100)]
    codes = sum(group_bytes(bits, tokens, 48) for bits, tokens in groups) + 2 * 48
    parts = cache.parts()
    assert parts["k"] + parts["v"] + parts["scales"] == codes
    assert parts["tail"] == 2 * 4 * 48 * 30 + 8
    assert parts["tables"] == 4 * 130 + 4 * 100 + 8 + 8
    k, v = cache.store(0).read_bits
    assert k + v == 8 * (codes + 2 * 4 * 48 * 30 + 2 * 48 * (len(groups) - 1))
    assert cache.nbytes() == sum(parts.values())


def test_groups_of_one_call_share_the_scales_of_channels():
    cache, _, v = filled()
    cache.recompress(0, oldest(cache, [40]), random_tiers(1, 1, 40, [4, 2]))
    first, second = cache.store(0).groups[0]
    assert isinstance(first, CodedGroup)
    assert first.c is second.c
    assert torch.equal(first.c, v[0].abs().amax(1).sqrt().half().flatten())


@pytest.mark.parametrize(
    ("slots", "tier", "error", "message"),
    [
        ([0, 1], 3, ValueError, "tier=3 is not a width"),
        ([1, 2], 4, CacheCannot, "are not the oldest in full"),
        ([0, 2], 4, CacheCannot, "are not the oldest in full"),
        ([-1, 0], 4, CacheCannot, "are not the oldest in full"),
        ([0, 99], 4, ValueError, "slot 99 is not held"),
        ([0], torch.full((1, 3, 1), 4), ValueError, "must be \\(batch=1, 1 or heads=2"),
    ],
)
def test_what_cannot_be_compressed_is_refused(slots, tier, error, message):
    cache, _, _ = filled()
    with pytest.raises(error, match=message):
        cache.recompress(0, torch.tensor([slots]), tier)


def test_values_without_codes_leave_the_cache_as_it_was():
    cache, _, v = filled()
    bad = v[:, :, :1] * torch.inf
    cache.append(0, bad, bad, torch.tensor([[40]]))
    with pytest.raises(ValueError, match="cached values hold NaN"):
        cache.recompress(0, oldest(cache, [41]), 4)
    assert torch.equal(cache.view(0).v[:, :, :40], v)
