"""Decoder, caches and hooks together: neutral settings change nothing, however the tokens come."""

import functools

import pytest
import torch
from tests.models.families import VOCAB, make

from shoestring.generation.decode import Finish, generate
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.quantised_cache import QuantCache
from shoestring.generation.runner import make_runner
from shoestring.generation.transformers_cache import TransformersCache
from shoestring.layers.attention import STATISTICS
from shoestring.models.decoder import Decoder
from shoestring.models.hooks import AttnPlan, Keep
from shoestring.numbers.cache_format import CacheFormat

TOLERANCE = {torch.float32: 5e-4, torch.float64: 1e-9}
PROMPT = torch.randint(VOCAB, (1, 23), generator=torch.Generator().manual_seed(1))
FAMILIES = ["llama", "gemma 3"]
CACHES = {"dense": None, "all in the tail": CacheFormat(4, 8, tail_tokens=10_000)}


@functools.cache
def decoder_of(family, dtype=torch.float32):
    """Weights at which greedy tokens vary and no two logits are too close to tell apart."""
    decoder = Decoder.from_transformers(make(family, scale=12.0 if family == "llama" else 3.0))
    if family == "gemma 3":
        decoder.model.embed_tokens.weight.data *= 0.1
        decoder.model.norm.weight.data += 20
    return decoder.to(dtype).requires_grad_(False)


def cache_of(decoder, kind, batch=1):
    return decoder_cache(decoder, CACHES[kind], batch=batch)


class Neutral:
    """Every kind of hook, none of which changes anything."""

    def embed(self, ids, pos, ctx, proceed):
        return proceed(ids, pos, ctx)

    def pre_layer(self, layer, x, pos, ctx):
        return Keep()

    def linear(self, layer, names, x, phase, proceed):
        return proceed(x)

    def attn_plan(self, layer, q, pos, ctx):
        every = torch.arange(pos.shape[1]).expand(pos.shape)
        store = torch.ones_like(pos, dtype=torch.bool)
        need = frozenset(STATISTICS if layer == 1 else ())
        return AttnPlan(rows=every if layer == 2 else None, store=store if layer == 0 else None, need=need)

    def post_attn(self, layer, out, stats, ctx):
        return out

    def post_layer(self, layer, x_in, x_out, ctx):
        return x_out


def greedy(decoder, cache, steps, chunk=1000, hooks=()):
    """Ids and logits of every position, with a prompt in chunks and then `steps` greedy tokens."""
    ids, logits = PROMPT, []
    for at in range(0, PROMPT.shape[1], chunk):
        logits.append(decoder(ids[:, at : at + chunk], cache=cache, hooks=hooks).logits)
    for _ in range(steps):
        ids = torch.cat([ids, logits[-1][:, -1:].argmax(-1)], 1)
        logits.append(decoder(ids[:, -1:], cache=cache, hooks=hooks).logits)
    return ids, torch.cat(logits, 1)


NEUTRAL = [
    *((family, kind, torch.float32, ()) for family in FAMILIES for kind in CACHES),
    *((family, "dense", torch.float64, ()) for family in FAMILIES),
    *((family, "all in the tail", torch.float64, (Neutral(),)) for family in FAMILIES),
    ("llama", "dense", torch.float32, (Neutral(),)),
]


@pytest.mark.parametrize(("family", "kind", "dtype", "hooks"), NEUTRAL)
def test_neutral_element(family, kind, dtype, hooks):
    """The 64 tokens are those of passes over the whole sequence, without cache or hooks."""
    decoder = decoder_of(family, dtype)
    ids, logits = greedy(decoder, cache_of(decoder, kind), 64, hooks=hooks)
    expected = decoder(ids).logits
    assert len(set(ids[0, 23:].tolist())) > 8, "the output must not be one token"
    assert torch.equal(ids[:, 23:], expected[:, 22:-1].argmax(-1))
    torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("chunk", [7, 1])
def test_chunks_of_a_prompt_make_no_difference(family, kind, chunk):
    decoder = decoder_of(family)
    whole, chunked = cache_of(decoder, kind), cache_of(decoder, kind)
    _, expected = greedy(decoder, whole, 5)
    _, logits = greedy(decoder, chunked, 5, chunk)
    torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE[torch.float32])
    for layer in range(decoder.cfg.num_hidden_layers):
        one, other = whole.view(layer), chunked.view(layer)
        assert torch.equal(one.pos, other.pos)
        torch.testing.assert_close(other.k, one.k, rtol=0, atol=1e-4)
        torch.testing.assert_close(other.v, one.v, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("hooks", [(), (Neutral(),)], ids=["plain", "neutral hooks"])
def test_a_ragged_batch_is_three_runs(family, kind, hooks):
    decoder, lengths = decoder_of(family), [23, 9, 1]
    ids = torch.randint(VOCAB, (3, 23), generator=torch.Generator().manual_seed(5))
    steps = torch.randint(VOCAB, (3, 6), generator=torch.Generator().manual_seed(6))
    pos = torch.arange(23).expand(3, -1)
    pos = pos.masked_fill(pos >= torch.tensor(lengths)[:, None], -1)
    batch = cache_of(decoder, kind, batch=3)
    together = decoder(ids, pos, cache=batch, hooks=hooks).logits
    assert batch.next_pos.tolist() == lengths
    later = torch.cat([decoder(steps[:, i : i + 1], cache=batch, hooks=hooks).logits for i in range(6)], 1)
    for row, length in enumerate(lengths):
        alone = cache_of(decoder, kind)
        first = decoder(ids[row : row + 1, :length], cache=alone).logits
        rest = [decoder(steps[row : row + 1, i : i + 1], cache=alone).logits for i in range(6)]
        assert batch.length(0)[row] == length + 6
        torch.testing.assert_close(together[row, :length], first[0], rtol=0, atol=5e-4)
        torch.testing.assert_close(later[row], torch.cat(rest, 1)[0], rtol=0, atol=5e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_rolling_back_a_draft_leaves_no_trace(family):
    decoder = decoder_of(family)
    cache = cache_of(decoder, "dense")
    decoder(PROMPT, cache=cache)
    expected = decoder(PROMPT[:, :2], cache=cache.clone()).logits
    mark = cache.mark()
    decoder(PROMPT[:, 4:9], cache=cache)
    cache.rollback(mark)
    torch.testing.assert_close(decoder(PROMPT[:, :2], cache=cache).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_evicted_cache_is_attention_over_what_is_left(family):
    """Positions have gaps then, and a window still counts positions, not slots."""
    decoder = decoder_of(family)
    cache = cache_of(decoder, "dense")
    decoder(PROMPT, cache=cache)
    keep = torch.tensor([[0, 1, 2, 15, 18, 19, 22]])
    for layer in range(decoder.cfg.num_hidden_layers):
        cache.evict(layer, keep)
    token = PROMPT[:, 3:4]
    found = decoder(token, cache=cache).logits
    whole = cache_of(decoder, "dense")
    decoder(PROMPT, cache=whole)

    class Only:
        def attn_plan(self, layer, q, pos, ctx):
            return AttnPlan(select=keep[:, None].expand(-1, 2, -1))

    expected = decoder(token, cache=whole, hooks=[Only()]).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert cache.next_pos.tolist() == [24]


def test_generate_gives_the_tokens_of_transformers():
    theirs = make("llama")
    expected = theirs.generate(PROMPT, max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0)
    decoder = Decoder.from_transformers(theirs)
    for chunk in (4, 512):
        result = generate(decoder, PROMPT[0].tolist(), max_new_tokens=16, prefill_chunk=chunk, stop_tokens=())
        assert result.tokens == expected[0, 23:].tolist()
        assert result.finish is Finish.LENGTH
    assert DecoderRunner(decoder).end_tokens == frozenset([2])


def test_the_runner_keeps_the_cache_in_the_models_format():
    decoder = Decoder.from_transformers(make("llama"))
    decoder.kv_cache_format = CacheFormat(4, 8, tail_tokens=8)
    runner = make_runner(decoder, capacity=96)
    assert isinstance(runner.cache, QuantCache)
    packed = generate(decoder, [7] * 80, max_new_tokens=7, stop_tokens=())
    own = DenseCache(4, 1, 2, decoder.cfg.head_dim, capacity=87)
    plain = generate(decoder, [7] * 80, max_new_tokens=7, stop_tokens=(), cache=own)
    assert 0 < packed.cache_bytes < plain.cache_bytes / 2
    dense = decoder_cache(Decoder.from_transformers(make("llama", torch.bfloat16)), capacity=5)
    assert (type(dense), dense.layers[0].table.columns["k"].data.dtype) == (DenseCache, torch.bfloat16)


def test_hooks_reach_every_pass_of_a_runner():
    phases = []

    class Watch:
        def linear(self, layer, names, x, phase, proceed):
            phases.append(phase.value)
            return proceed(x)

    runner = DecoderRunner(decoder_of("llama"), hooks=[Watch()])
    runner.feed(PROMPT)
    runner.feed(PROMPT[:, :1])
    assert phases == ["prefill"] * 16 + ["decode"] * 16
    assert runner.cache_bytes == runner.cache.nbytes()


def test_a_cache_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="a TransformersCache is no cache of a Decoder; pass a DenseCache"):
        generate(decoder_of("llama"), [1], cache=TransformersCache())
