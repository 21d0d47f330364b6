"""What is particular to the quantised cache: what it rounds, what it holds in full, and its bytes."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.generation.cache_bytes import bytes_for
from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.quantised_blocks import naive_round_trip
from shoestring.generation.quantised_cache import QuantCache
from shoestring.numbers.cache_format import CacheFormat

from .cache_kinds import noise


def filled(form, k, v, chunk=1000, **options):
    batch, heads, tokens, dim = k.shape
    cache = QuantCache(1, batch, heads, dim, form, dtype=k.dtype, **options)
    pos = torch.arange(tokens).expand(batch, -1)
    for at in range(0, tokens, chunk):
        end = min(at + chunk, tokens)
        cache.append(0, k[:, :, at:end], v[:, :, at:end], pos[:, at:end])
    return cache


@given(
    bits=st.sampled_from([2, 4, 8]),
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 45),
    tail=st.integers(0, 11),
    chunk=st.sampled_from([1, 6, 100]),
    seed=st.integers(0, 99),
)
def test_old_tokens_are_rounded_by_group_and_the_tail_is_exact(bits, batch, heads, tokens, tail, chunk, seed):
    form = CacheFormat(bits, 8, tail)
    k, v = noise(batch, heads, tokens, 16, seed=seed), noise(batch, heads, tokens, 16, seed=seed + 1)
    # A few large key channels are why keys are grouped along the tokens.
    k[..., 3] = 40 + 0.1 * k[..., 3]
    view = filled(form, k, v, chunk).view(0)
    old = form.quantised_tokens(tokens)
    assert torch.equal(view.k[:, :, old:], k[:, :, old:])
    assert torch.equal(view.v[:, :, old:], v[:, :, old:])
    naive_k, naive_v = naive_round_trip(form, k[:, :, :old], v[:, :, :old])
    # A value half-way between two codes may fall to either side, as sums are rounded differently.
    for given_, naive, exact in ((view.k, naive_k, k), (view.v, naive_v, v)):
        step = (given_[:, :, :old] - naive).abs()
        assert (step > 1e-5).float().mean() < 0.01 if step.numel() else True
        assert (given_[:, :, :old] - exact[:, :, :old]).square().sum() <= 1.0001 * (
            (naive - exact[:, :, :old]).square().sum() + 1e-6
        )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_error_is_half_a_step_of_the_group(bits):
    form = CacheFormat(bits, 16, 0)
    k, v = noise(1, 2, 64, 32, seed=1), noise(1, 2, 64, 32, seed=2)
    view = filled(form, k, v).view(0)
    groups = k.unflatten(2, (-1, 16))
    step = (groups.amax(3) - groups.amin(3)) / (2**bits - 1)
    error = (view.k - k).abs().unflatten(2, (-1, 16)).amax(3)
    # Scale and offset are float16: their own rounding adds to the half step.
    assert (error <= 0.5 * step + 2**-10 * groups.abs().amax(3) * 2).all()
    groups = v.unflatten(3, (-1, 16))
    step = (groups.amax(4) - groups.amin(4)) / (2**bits - 1)
    assert (
        (view.v - v).abs().unflatten(3, (-1, 16)).amax(4) <= 0.5 * step + 2**-9 * groups.abs().amax(4)
    ).all()


@given(
    bits=st.sampled_from([2, 4, 8]),
    group=st.sampled_from([8, 16]),
    tail=st.integers(0, 50),
    context=st.integers(1, 150),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    first=st.integers(1, 150),
)
def test_predicted_bytes_are_the_bytes_held(bits, group, tail, context, batch, heads, dtype, first):
    config = SimpleNamespace(
        num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=heads, hidden_size=6 * 32
    )
    form = CacheFormat(bits, group, tail)
    caches = {
        form: QuantCache(2, batch, heads, 32, form, dtype=dtype, capacity=context),
        None: DenseCache(2, batch, heads, 32, dtype=dtype, capacity=context),
    }
    for kind, cache in caches.items():
        assert cache.nbytes() == bytes_for(config, context, kind, batch=batch, dtype=dtype)
        # A prompt, then token by token: it never takes more on the way.
        sizes = [min(first, context)] + [1] * (context - min(first, context))
        at = 0
        for size in sizes:
            new = torch.randn(batch, heads, size, 32).to(dtype)
            for layer in range(2):
                cache.append(layer, new, new, torch.arange(at, at + size).expand(batch, -1))
            at += size
        assert cache.nbytes() == bytes_for(config, context, kind, batch=batch, dtype=dtype)
        assert cache.length(1).tolist() == [context] * batch


def test_fewer_bits_take_fewer_bytes_and_the_scales_are_counted():
    config = SimpleNamespace(
        num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, hidden_size=576
    )
    sizes = [bytes_for(config, 4096, CacheFormat(bits, 32, 128), dtype=torch.float16) for bits in (2, 4, 8)]
    dense = bytes_for(config, 4096, dtype=torch.float16)
    assert sizes[0] < sizes[1] < sizes[2] < dense
    # 4 bits and 2 float16 in 32 values are 5 bits; the rest is the tail and the positions.
    blocks = 30 * 3968 * 2 * 3 * 64 * 5 // 8
    assert blocks < sizes[1] < 1.15 * blocks


def test_values_that_float16_cannot_hold_are_refused():
    k = torch.full((1, 1, 8, 8), 1e6)
    with pytest.raises(ValueError, match="beyond ±65504"):
        filled(CacheFormat(4, 8, 0), k, k)
    with pytest.raises(ValueError, match="'cached keys' holds NaN"):
        filled(CacheFormat(4, 8, 0), k * torch.nan, k)


def test_rolling_back_into_the_blocks_gives_what_was_stored():
    form = CacheFormat(8, 8, 4)
    k, v = noise(1, 2, 40, 16, seed=1), noise(1, 2, 40, 16, seed=2)
    cache = QuantCache(1, 1, 2, 16, form)
    cache.append(0, k[:, :, :13], v[:, :, :13], torch.arange(13)[None])
    mark = cache.mark()
    cache.append(0, k[:, :, 13:], v[:, :, 13:], torch.arange(13, 40)[None])
    stored = cache.view(0).k.clone()
    cache.rollback(mark)
    assert torch.equal(cache.view(0).k, stored[:, :, :13])
    assert cache.length(0).tolist() == [13]


def test_evicting_from_the_end_leaves_the_blocks_before_it_untouched():
    form = CacheFormat(2, 8, 0)
    k, v = noise(1, 2, 40, 16, seed=1), noise(1, 2, 40, 16, seed=2)
    cache = filled(form, k, v)
    before = cache.view(0).k.clone()
    cache.evict(0, torch.tensor([[i for i in range(40) if i != 20]]))
    assert torch.equal(cache.view(0).k[:, :, :16], before[:, :, :16])


def test_bytes_need_a_context():
    with pytest.raises(ValueError, match="context=0"):
        bytes_for(SimpleNamespace(), 0)
