"""Hybrids by the compiled step: the same text as module by module, alone and several at once."""

import pytest
import torch

from shoestring.generation import generate
from shoestring.generation.compiled_batch_runner import MOST_PLAIN_ROWS, CompiledBatchRunner, batch_runner
from shoestring.generation.compiled_runner import CompiledRunner
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.hybrid_cache import HybridCache
from shoestring.generation.runner import make_runner
from shoestring.generation.speculation.target import Target
from shoestring.models.protocols import CacheCannot
from shoestring.notices import record_fallbacks
from shoestring.numbers.cache_format import CacheFormat
from shoestring.numbers.token_cache_format import TokenCacheFormat
from shoestring.training.model_text import model_text

from ..models.hybrids import ids_of, tiny

LAYOUTS = ["tmtm", "mm"]
NEAR = {"rtol": 1e-4, "atol": 1e-3}


def greedy(runner, prompt, tokens):
    """What is likeliest, token by token, for every sequence."""
    ids, found = prompt, []
    with torch.inference_mode():
        for _ in range(tokens):
            ids = runner.feed(ids).argmax(-1, keepdim=True)
            found.append(ids)
    return torch.cat(found, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prompt", [1, 5, 23])
def test_generate_writes_the_text_of_the_modules(layout, prompt):
    decoder = tiny(layout, tie_word_embeddings=False)
    ids = ids_of(1, prompt)
    runner = make_runner(decoder)
    assert isinstance(runner, CompiledRunner)
    assert isinstance(runner.cache, HybridCache)
    expected = greedy(DecoderRunner(decoder), ids, 40)
    assert len(set(expected[0].tolist())) > 5
    assert greedy(runner, ids, 40).equal(expected)
    out = generate(decoder, ids[0].tolist(), max_new_tokens=40, stop_tokens=(), prefill_chunk=4)
    assert out.tokens == expected[0].tolist()


@pytest.mark.parametrize("layout", [*LAYOUTS, "tt"])
def test_several_sequences_write_the_text_of_the_modules(layout):
    decoder, ids = tiny(layout, tie_word_embeddings=False), ids_of(5, 6)
    cache = decoder_cache(decoder, batch=5)
    runner = batch_runner(decoder, cache)
    assert isinstance(runner, CompiledBatchRunner)
    plain = decoder_cache(decoder, batch=5)
    expected = greedy(DecoderRunner(decoder, plain), ids, 30)
    assert greedy(runner, ids, 30).equal(expected)
    assert cache.plain_slots() == 35
    assert cache.next_pos.tolist() == [35] * 5
    if "t" in layout:
        view, other = cache.view(0), plain.view(0)
        assert view.pos.equal(other.pos)
        torch.testing.assert_close(view.k, other.k, **NEAR)
        assert cache.traffic.k_bits > 0


def test_many_rows_of_plain_weights_go_by_module(monkeypatch):
    decoder = tiny("tm")
    batch = MOST_PLAIN_ROWS + 1
    runner = batch_runner(decoder, decoder_cache(decoder, batch=batch))
    assert isinstance(runner, CompiledBatchRunner)
    monkeypatch.setattr(runner.compiled, "run", None)
    ids = ids_of(batch, 2)
    torch.testing.assert_close(runner.feed(ids), decoder(ids).logits[:, -1], **NEAR)


def test_more_rows_than_a_call_takes(monkeypatch):
    monkeypatch.setattr("shoestring.generation.compiled_batch_runner.MOST_PLAIN_ROWS", 10**6)
    decoder, ids = tiny("tm"), ids_of(130, 4)
    runner = batch_runner(decoder, decoder_cache(decoder, batch=130))
    runner.feed(ids[:, :1])
    found = runner.feed(ids[:, 1:])
    torch.testing.assert_close(found, decoder(ids).logits[:, -1], **NEAR)


def test_a_model_writes_the_same_text_either_way(monkeypatch):
    decoder = tiny("tm", tie_word_embeddings=False)

    def written():
        return model_text(decoder, 6, 12, generator=torch.Generator().manual_seed(3))

    fast = written()
    monkeypatch.setattr("shoestring.training.model_text.batch_runner", DecoderRunner)
    assert fast.equal(written())


@pytest.mark.parametrize("batch", [1, 3])
def test_rollback_is_exact_and_what_others_hold_stays(batch):
    decoder, ids = tiny("tmtm"), ids_of(batch, 20)
    cache = decoder_cache(decoder, batch=batch)
    runner = CompiledRunner(decoder, cache) if batch == 1 else batch_runner(decoder, cache)
    decoder(ids[:, :9], cache=cache)
    given = cache.state(1)
    before = {name: tensor.clone() for name, tensor in given.items()}
    runner.feed(ids[:, 9:10])
    assert all(given[name].equal(before[name]) for name in given)
    mark = cache.mark()
    wanted = runner.feed(ids[:, 10:11])
    copy = cache.clone()
    for n in range(11, 20):
        last = runner.feed(ids[:, n : n + 1])
    cache.rollback(mark)
    assert torch.equal(runner.feed(ids[:, 10:11]), wanted)
    other = CompiledRunner(decoder, copy) if batch == 1 else batch_runner(decoder, copy)
    for n in range(11, 20):
        again = other.feed(ids[:, n : n + 1])
    assert torch.equal(again, last)
    torch.testing.assert_close(last, decoder(ids).logits[:, -1], **NEAR)


def test_states_are_copied_only_where_somebody_else_may_hold_them():
    decoder = tiny("tm")
    cache = decoder_cache(decoder)
    first = cache.own_states()[1]["ssm"]
    assert cache.own_states()[1]["ssm"] is first
    mark = cache.mark()
    second = cache.own_states()[1]["ssm"]
    assert second is not first
    assert cache.own_states()[1]["ssm"] is second
    cache.rollback(mark)
    assert cache.state(1)["ssm"] is first
    assert cache.own_states()[1]["ssm"] is not first
    cache.set_state(1, {n: t.transpose(1, 2).contiguous().transpose(1, 2) for n, t in cache.state(1).items()},
                    torch.tensor([[0]]))  # fmt: skip
    assert all(t.is_contiguous() for t in cache.own_states()[1].values())


def test_keys_and_values_in_codes():
    decoder, ids = tiny("tmt"), ids_of(1, 30)
    form = TokenCacheFormat(8, 8)
    runner = make_runner(decoder, decoder_cache(decoder, form))
    assert isinstance(runner, CompiledRunner)
    expected = DecoderRunner(decoder, decoder_cache(decoder, form))
    for n in range(30):
        found, wanted = runner.feed(ids[:, n : n + 1]), expected.feed(ids[:, n : n + 1])
    assert (found - wanted).abs().max() < 0.05 * wanted.std()
    several = batch_runner(decoder, decoder_cache(decoder, form, batch=2))
    assert isinstance(several, CompiledBatchRunner)
    for n in range(30):
        both = several.feed(ids[:, n : n + 1].expand(2, 1))
    torch.testing.assert_close(both, found.expand(2, -1), rtol=0, atol=0.05 * float(wanted.std()))


def test_what_codes_cannot_hold_leaves_the_cache_as_it_was():
    decoder, ids = tiny("mtm"), ids_of(1, 9)
    cache = decoder_cache(decoder, TokenCacheFormat(8, 8))
    runner = CompiledRunner(decoder, cache)
    runner.feed(ids[:, :4])
    before = [cache.state(layer)["ssm"].clone() for layer in (0, 2)]
    weight = decoder.model.layers[1].self_attn.v_proj.weight
    kept = weight.clone()
    weight.data.fill_(torch.inf)
    with pytest.raises(ValueError, match="layer 1 are not finite"):
        runner.feed(ids[:, 4:5])
    assert cache.plain_slots() == 4
    assert all(cache.state(layer)["ssm"].equal(held) for layer, held in zip((0, 2), before, strict=True))
    weight.data.copy_(kept)
    assert runner.feed(ids[:, 4:5]).isfinite().all()


def test_what_goes_the_usual_way():
    decoder, ids = tiny("tm"), ids_of(2, 8)
    with record_fallbacks() as said:
        quantised = decoder_cache(decoder, CacheFormat(8, 8, 4), batch=2)
        assert type(batch_runner(decoder, quantised)) is DecoderRunner
        assert type(make_runner(decoder, decoder_cache(decoder, CacheFormat(8, 8, 4)))) is DecoderRunner
        assert type(batch_runner(tiny("tm", dtype=torch.float64), decoder_cache(decoder, batch=2))) is (
            DecoderRunner
        )
    assert not said
    with pytest.raises(TypeError, match="keeps keys and values in a"):
        CompiledRunner(decoder, decoder_cache(decoder, CacheFormat(8, 8, 4)))
    with pytest.raises(TypeError, match="cannot use this cache"):
        CompiledBatchRunner(decoder, quantised)
    with record_fallbacks() as said:
        assert type(batch_runner(tiny("ti"), decoder_cache(tiny("ti"), batch=2))) is DecoderRunner
    assert any("module by module" in line and "layer 1 is identity" in line for line in said)
    # Rows of different lengths are no plain cache.
    cache = decoder_cache(decoder, batch=2)
    runner = batch_runner(decoder, cache)
    decoder(ids[:, :3], torch.tensor([[0, 1, 2], [0, 1, -1]]), cache)
    assert cache.plain_slots() is None
    torch.testing.assert_close(runner.feed(ids[:, 3:4])[0], decoder(ids[:1, :4]).logits[0, -1], **NEAR)


def test_tokens_do_not_leave_a_state():
    decoder = tiny("tm")
    cache = decoder_cache(decoder)
    mark = cache.mark()
    decoder(ids_of(1, 4), cache=cache)
    with pytest.raises(CacheCannot, match="give slots back"):
        cache.give_back(1)
    with pytest.raises(CacheCannot, match="keep a path"):
        cache.keep_path(mark, torch.tensor([[0, 1]]))
    with pytest.raises(TypeError, match="the states of a hybrid cannot"):
        Target(make_runner(decoder))
