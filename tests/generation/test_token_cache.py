"""The cache of tokens in codes: what it stores, and the compiled step beside the decoder module by module."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.families import VOCAB, make

from shoestring.compression import KVQuantizeTokens, apply
from shoestring.generation.cache_bytes import bytes_for
from shoestring.generation.compiled_runner import CompiledRunner
from shoestring.generation.decode import generate
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.runner import make_runner
from shoestring.generation.token_cache import TokenCache
from shoestring.generation.transformers_cache import TransformersCache
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.notices import record_fallbacks
from shoestring.numbers.token_cache_format import TokenCacheFormat, decode_rows, encode_rows

WIDTHS = st.sampled_from([16, 8, 4, 2])
PROMPT = torch.randint(VOCAB, (1, 70), generator=torch.Generator().manual_seed(1))


def decoder_of(head_dim=64):
    """Two layers with heads that hold whole runs of codes of every width."""
    fields = {
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 96, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": head_dim,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    }  # fmt: skip
    torch.manual_seed(5)
    decoder = Decoder(DecoderConfig.from_dict(fields)).requires_grad_(False).eval()
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            parameter.data *= 4
    return decoder


def fed(runner, spans):
    """The logits that follow each span of the prompt."""
    with torch.inference_mode():
        return torch.cat([runner.feed(PROMPT[:, a:b]) for a, b in spans])


@given(
    key_bits=WIDTHS, value_bits=WIDTHS, batch=st.integers(1, 2), heads=st.integers(1, 3),
    tokens=st.integers(1, 30), chunk=st.sampled_from([1, 7, 100]), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_view_gives_back_every_token_by_itself(key_bits, value_bits, batch, heads, tokens, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(batch, heads, tokens, 64, generator=generator) for _ in range(2))
    cache = TokenCache(1, batch, heads, 64, TokenCacheFormat(key_bits, value_bits))
    pos = torch.arange(tokens).expand(batch, -1)
    for at in range(0, tokens, chunk):
        part = slice(at, at + chunk)
        cache.append(0, k[:, :, part], v[:, :, part], pos[:, part])
    view = cache.view(0)
    for found, given_, bits in ((view.k, k, key_bits), (view.v, v, value_bits)):
        expected = given_.half().float()
        if bits < 16:
            expected = decode_rows(*encode_rows(given_, bits, "x"), bits, 64)
        assert torch.equal(found, expected)


@given(
    key_bits=WIDTHS, value_bits=WIDTHS, context=st.integers(1, 100), batch=st.integers(1, 3),
    heads=st.integers(1, 3), first=st.integers(1, 100),
)  # fmt: skip
def test_predicted_bytes_are_the_bytes_held(key_bits, value_bits, context, batch, heads, first):
    config = SimpleNamespace(
        num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=heads, head_dim=64
    )
    form = TokenCacheFormat(key_bits, value_bits)
    cache = TokenCache(2, batch, heads, 64, form, capacity=context)
    expected = bytes_for(config, context, form, batch=batch)
    assert cache.nbytes() == expected
    at = 0
    for size in [min(first, context)] + [1] * (context - min(first, context)):
        new = torch.randn(batch, heads, size, 64)
        for layer in range(2):
            cache.append(layer, new, new, torch.arange(at, at + size).expand(batch, -1))
        at += size
    assert cache.nbytes() == expected


@pytest.mark.parametrize(("bits", "share"), [(8, 68 / 128), (4, 36 / 128), (2, 20 / 128)])
def test_what_a_token_reads_and_holds_against_16_bits(bits, share):
    """0.53, 0.28 and 0.16 of the bytes, at 64 channels a head, grids included."""
    cache, plain = (TokenCache(1, 1, 3, 64, TokenCacheFormat(b, b), capacity=32) for b in (bits, 16))
    for each in (cache, plain):
        each.append(0, torch.ones(1, 3, 32, 64), torch.ones(1, 3, 32, 64), torch.arange(32)[None])
    held, full = (
        sum(size for part, size in each.parts().items() if part != "tables") for each in (cache, plain)
    )
    assert held == share * full
    k, v = cache.layers[0].read_bits
    assert k == v == share * 8 * full / 2


@pytest.mark.parametrize("widths", [(16, 16), (8, 8), (8, 4), (4, 4), (2, 16), (4, 2)])
def test_the_compiled_step_gives_the_logits_of_the_decoder(widths):
    decoder, form = decoder_of(), TokenCacheFormat(*widths)
    spans = [(0, 50), (50, 51), (51, 55), (55, 56), *((i, i + 1) for i in range(56, 70))]
    cache = decoder_cache(decoder, form)
    compiled = CompiledRunner(decoder, cache)
    # Module by module the same tokens meet the same codes; a prompt of plain weights goes that way anyway.
    plain = DecoderRunner(decoder, decoder_cache(decoder, form))
    expected, found = fed(plain, spans), fed(compiled, spans)
    # A value half-way between two codes may fall to either side, as sums are rounded differently.
    tolerance = 2**-11 if widths == (16, 16) else 0.05 / 2 ** min(widths)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    assert cache.plain_slots() == 70


@pytest.mark.parametrize("widths", [(8, 8), (8, 4), (2, 4)])
def test_chunks_of_a_prompt_make_no_difference(widths):
    """A prompt in one block of queries, in chunks, and token by token: the same codes and logits."""
    form = TokenCacheFormat(*widths)
    decoder, found = apply(decoder_of(), _rounded(), ignore=()), []
    for spans in ([(0, 70)], [(i, i + 7) for i in range(0, 70, 7)], [(i, i + 1) for i in range(70)]):
        runner = CompiledRunner(decoder, decoder_cache(decoder, form))
        logits = fed(runner, spans)[-1]
        found.append((logits, [runner.cache.view(layer) for layer in range(2)]))
    (expected, views), *others = found
    for logits, theirs in others:
        torch.testing.assert_close(logits, expected, rtol=0, atol=0.02 * float(expected.abs().max()))
        for one, other in zip(views, theirs, strict=True):
            # Nearly all codes are the same; one that differs is off by a step of its grid.
            assert ((one.k - other.k).abs() > 1e-3).float().mean() < 0.01
            assert ((one.v - other.v).abs() > 1e-3).float().mean() < 0.01


def test_tokens_taken_back_leave_no_trace():
    decoder = decoder_of()
    runner = CompiledRunner(decoder, decoder_cache(decoder, TokenCacheFormat(4, 4)))
    with torch.inference_mode():
        runner.feed(PROMPT)
        mark = runner.cache.mark()
        first = runner.feed(torch.tensor([[3]]))
        runner.feed(torch.tensor([[9, 8, 7]]))
        runner.cache.rollback(mark)
        assert torch.equal(runner.feed(torch.tensor([[3]])), first)


def test_a_model_marked_by_the_recipe_runs_compiled():
    decoder = apply(decoder_of(), KVQuantizeTokens(8, 4))
    with record_fallbacks() as said:
        runner = make_runner(decoder, capacity=80)
    assert isinstance(runner, CompiledRunner)
    assert isinstance(runner.cache, TokenCache)
    assert runner.cache.form == TokenCacheFormat(8, 4)
    assert said == []
    plain = generate(decoder_of(), PROMPT[0].tolist(), max_new_tokens=8, stop_tokens=())
    rounded = generate(decoder, PROMPT[0].tolist(), max_new_tokens=8, stop_tokens=())
    assert rounded.cache_bytes < 0.3 * plain.cache_bytes


@pytest.mark.parametrize("factor", [torch.nan, 1e30])
def test_values_without_codes_are_refused_and_leave_the_cache_as_it_was(factor):
    decoder = decoder_of()
    runner = CompiledRunner(decoder, decoder_cache(decoder, TokenCacheFormat(8, 8)))
    weight = decoder.model.layers[1].self_attn.v_proj.weight
    kept, token = weight.clone(), torch.tensor([[4]])
    with torch.inference_mode():
        runner.feed(PROMPT)
        mark = runner.cache.mark()
        expected = runner.feed(token)
        runner.cache.rollback(mark)
        weight.data *= factor
        with pytest.raises(ValueError, match="keys or values of layer 1 are not finite or beyond"):
            runner.feed(token)
        assert runner.cache.plain_slots() == 70
        weight.data.copy_(kept)
        assert torch.equal(runner.feed(token), expected)


def test_module_by_module_refuses_them_too():
    cache = TokenCache(1, 1, 1, 64, TokenCacheFormat(8, 16))
    bad = torch.full((1, 1, 1, 64), torch.inf)
    fine = torch.zeros(1, 1, 1, 64)
    with pytest.raises(ValueError, match="cached keys hold NaN or infinite values"):
        cache.append(0, bad, fine, torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="cached values hold values that are not finite"):
        cache.append(0, fine, bad, torch.zeros(1, 1, dtype=torch.long))


def test_heads_that_hold_no_whole_runs_are_refused():
    with pytest.raises(ValueError, match="48 channels, but codes of key_bits=4 come in runs of 32"):
        decoder_cache(decoder_of(48), TokenCacheFormat(4, 8))


def test_inside_transformers():
    model = make("llama, biases")
    dim = model.config.hidden_size // model.config.num_attention_heads
    form = TokenCacheFormat(8 if dim % 16 == 0 else 16, 16)
    with torch.no_grad():
        expected = model(PROMPT).logits[:, -1]
        cache = TransformersCache(form, config=model.config)
        model(PROMPT[:, :60], past_key_values=cache)
        found = model(PROMPT[:, 60:], past_key_values=cache).logits[:, -1]
    error = (found - expected).abs().max() / expected.std()
    assert error < 0.1
    assert cache.get_seq_length() == 70


def _rounded():
    from shoestring.compression.group_quantize import RoundToNearest

    return RoundToNearest(8, 16)
