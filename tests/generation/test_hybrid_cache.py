"""The cache of a hybrid: prompts whole, in pieces and padded; marks, copies, bytes, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.generation import generate
from shoestring.generation.cache_bytes import bytes_for
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.hybrid_cache import HybridCache
from shoestring.layers.mamba.grouped_mamba import ScanKind
from shoestring.models.protocols import CacheCannot, KVCache, StateCache
from shoestring.numbers.cache_format import CacheFormat
from shoestring.numbers.token_cache_format import TokenCacheFormat

from ..models.hybrids import VOCAB, ids_of, tiny

LAYOUTS = ["tmtm", "mm", "tmis", "ts"]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_a_cache(layout):
    cache = decoder_cache(tiny(layout), batch=2)
    assert isinstance(cache, HybridCache)
    assert isinstance(cache, KVCache)
    assert isinstance(cache, StateCache)
    assert (cache.n_layers, cache.batch) == (len(layout), 2)
    assert not isinstance(decoder_cache(tiny("tt")), HybridCache)


@pytest.mark.parametrize("scan", list(ScanKind))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_and_single_tokens_make_the_whole(layout, scan):
    """Prompts shorter than the convolution included."""
    decoder, ids = tiny(layout, scan=scan), ids_of(2, 17)
    whole = decoder(ids).logits
    assert whole.std() > 0.3
    for pieces in ([17], [1] * 17, [2, 9, 1, 5]):
        cache = decoder_cache(decoder, batch=2)
        found = [decoder(piece, cache=cache).logits for piece in ids.split(pieces, 1)]
        torch.testing.assert_close(torch.cat(found, 1), whole, **TOLERANCE)
        assert cache.next_pos.tolist() == [17, 17]


@settings(max_examples=8)
@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=3), more=st.integers(0, 4))
def test_rows_of_different_lengths(lengths, more):
    """Padded prompts, then padded pieces, against each sequence alone."""
    decoder, batch = tiny("tmtm"), len(lengths)
    ids = ids_of(batch, 16, seed=sum(lengths))
    cache = decoder_cache(decoder, batch=batch)
    count = torch.tensor(lengths)[:, None]
    place = torch.arange(9)
    decoder(ids[:, :9], torch.where(place < count, place, -1), cache)
    tail = ids[:, 9 : 10 + more]
    found = decoder(tail, count + torch.arange(1 + more), cache).logits
    for row, length in enumerate(lengths):
        alone = torch.cat([ids[row : row + 1, :length], tail[row : row + 1]], 1)
        torch.testing.assert_close(found[row], decoder(alone).logits[0, length:], **TOLERANCE)


def test_a_row_may_have_no_new_token():
    decoder = tiny("mtm")
    ids, cache = ids_of(2, 8), decoder_cache(tiny("mtm"), batch=2)
    decoder(ids[:, :5], cache=cache)
    decoder(ids[:, 5:6], torch.tensor([[5], [-1]]), cache)
    found = decoder(ids[:, 6:7], torch.tensor([[6], [5]]), cache).logits
    torch.testing.assert_close(found[0, 0], decoder(ids[:1, :7]).logits[0, -1], **TOLERANCE)
    alone = torch.cat([ids[1:, :5], ids[1:, 6:7]], 1)
    torch.testing.assert_close(found[1, 0], decoder(alone).logits[0, -1], **TOLERANCE)


def test_rollback_is_exact_and_marks_nest():
    decoder, ids = tiny("tmtm"), ids_of(1, 20)
    cache = decoder_cache(decoder)
    decoder(ids[:, :9], cache=cache)
    first = cache.mark()
    wanted = decoder(ids[:, 9:12], cache=cache).logits
    second = cache.mark()
    decoder(ids[:, 12:], cache=cache)
    cache.rollback(second)
    assert int(cache.next_pos) == 12
    cache.rollback(first)
    assert torch.equal(decoder(ids[:, 9:12], cache=cache).logits, wanted)
    with pytest.raises(ValueError, match="another cache, or later"):
        cache.rollback(second)


def test_copies_and_reordering_take_the_states_along():
    decoder, ids = tiny("tmtm"), ids_of(2, 12)
    cache = decoder_cache(decoder, batch=2)
    decoder(ids[:, :8], cache=cache)
    mark = cache.mark()
    other = cache.clone()
    decoder(ids[:, 8:10], cache=cache)
    wanted = decoder(ids[:, 8:], cache=other).logits
    torch.testing.assert_close(wanted, decoder(ids).logits[:, 8:], **TOLERANCE)
    cache.reorder(torch.tensor([1, 0, 1]))
    cache.rollback(mark)
    torch.testing.assert_close(
        decoder(ids[[1, 0, 1], 8:], cache=cache).logits, wanted[[1, 0, 1]], **TOLERANCE
    )


@pytest.mark.parametrize("form", [None, TokenCacheFormat(8, 8), CacheFormat(8, 8, 4)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_states_do_not_grow_and_keys_are_of_attention_only(layout, form):
    decoder = tiny(layout)
    sizes = {}
    for n in (3, 40):
        cache = decoder_cache(decoder, form, batch=2, capacity=64)
        decoder(ids_of(2, n), cache=cache)
        sizes[n] = cache.parts()
        assert cache.nbytes() == sum(map(cache.nbytes, range(len(layout))))
        assert cache.nbytes() == bytes_for(decoder.cfg, 64, form, batch=2)
    states = layout.count("m") * 2 * 64 * (3 * 4 + 4 * 4)
    assert sizes[3].get("states", 0) == sizes[40].get("states", 0) == states
    if form is None and "t" in layout:
        full = DenseCache(len(layout), 2, 2, 16, capacity=64).parts()
        for part in "kv":
            assert sizes[40][part] * len(layout) == full[part] * layout.count("t")


def test_a_prompt_leaves_nothing_of_itself_in_a_state():
    decoder = tiny("m")
    cache = decoder_cache(decoder)
    decoder(ids_of(1, 200), cache=cache)
    held = sum(t.untyped_storage().nbytes() for t in cache.state(0).values())
    assert held == sum(t.numel() * t.element_size() for t in cache.state(0).values())


def test_generation():
    decoder = tiny("tmtm", tie_word_embeddings=False)
    prompt = ids_of(1, 7)[0].tolist()
    out = generate(decoder, prompt, max_new_tokens=12, prefill_chunk=3, stop_tokens=())
    ids = list(prompt)
    for _ in range(12):
        ids.append(int(decoder(torch.tensor([ids])).logits[0, -1].argmax()))
    assert out.tokens == ids[7:]
    assert len(set(out.tokens)) > 3
    assert out.cache_bytes > 0
    cache = decoder_cache(decoder)
    assert DecoderRunner(decoder, cache).feed(ids_of(1, 3)).shape == (1, VOCAB)


def test_what_a_state_cannot_do():
    decoder = tiny("tm")
    cache = decoder_cache(decoder)
    mark = cache.mark()
    decoder(ids_of(1, 6), cache=cache)
    k = torch.zeros(1, 2, 1, 16)
    for operation, call in {
        "append": lambda: cache.append(1, k, k, torch.tensor([[6]])),
        "view": lambda: cache.view(1),
        "evict": lambda: cache.evict(1, torch.tensor([[0]])),
        "recompress": lambda: cache.recompress(1, torch.tensor([[0]]), 0),
        "compact": lambda: cache.compact(None, torch.tensor([[0]])),
        "keep a path": lambda: cache.keep_path(mark, torch.tensor([[0, 1]])),
        "give a state": lambda: cache.state(0),
    }.items():
        with pytest.raises(CacheCannot, match=f"cannot {operation}: .*keeps"):
            call()
    # What touches only slots of attention works as ever.
    cache.evict(0, torch.tensor([[0, 2, 5]]))
    assert (cache.length(0).item(), cache.length(1).item()) == (3, 0)
    cache.rollback(mark)
    assert cache.length(0).item() == 0
    with pytest.raises(ValueError, match="other names or shapes"):
        cache.set_state(1, {"conv": torch.zeros(1)}, torch.tensor([[0]]))
    with pytest.raises(ValueError, match="do not make one cache"):
        HybridCache(DenseCache(1, 2, 2, 16), {1: decoder.model.layers[1].mixer.init_state(1)})
    with pytest.raises(ValueError, match="do not make one cache"):
        HybridCache(None, {})
