import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from shoestring.generation.cache_bytes import bytes_for
from shoestring.generation.transformers_cache import TransformersCache
from shoestring.models.protocols import CacheCannot
from shoestring.numbers.cache_format import CacheFormat


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=3, num_key_value_heads=1, head_dim=16, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def ids(batch, tokens, seed=0):
    return torch.randint(97, (batch, tokens), generator=torch.Generator().manual_seed(seed))


EXACT = {"in full": None, "quantised, all in the tail": CacheFormat(4, 16, tail_tokens=500)}


@pytest.mark.parametrize("form", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_generate_gives_the_tokens_of_the_dynamic_cache(llama, form, options):
    prompt = ids(2, 7)
    settings = dict(max_new_tokens=40, do_sample=False, pad_token_id=0, **options)
    expected = llama.generate(prompt, past_key_values=DynamicCache(config=llama.config), **settings)
    given = llama.generate(prompt, past_key_values=TransformersCache(form, config=llama.config), **settings)
    assert torch.equal(given, expected)


def decoded_logits(model, cache, tokens, prompt):
    """Logits after every token: a prompt at once, then one token after the other."""
    with torch.inference_mode():
        out = [model(tokens[:, :prompt], past_key_values=cache).logits]
        out += [
            model(tokens[:, i : i + 1], past_key_values=cache).logits for i in range(prompt, tokens.shape[1])
        ]
    return torch.cat(out, dim=1)


def test_more_bits_are_nearer_to_the_exact_logits(llama):
    tokens = ids(2, 90)
    exact = decoded_logits(llama, DynamicCache(config=llama.config), tokens, 40)
    errors = {}
    for bits in (8, 4, 2):
        cache = TransformersCache(CacheFormat(bits, group_size=16, tail_tokens=8))
        logits = decoded_logits(llama, cache, tokens, 40)
        # A prompt sees itself in full, whatever is stored of it.
        torch.testing.assert_close(logits[:, :40], exact[:, :40], rtol=0, atol=1e-5)
        errors[bits] = (logits - exact).square().mean().sqrt().item()
    assert 0 < errors[8] < errors[4] / 8 < errors[2] / 32


def test_bytes_are_as_predicted_and_below_those_of_full_precision(llama):
    form = CacheFormat(4, group_size=16, tail_tokens=16)
    cache = TransformersCache(form, capacity=120)
    decoded_logits(llama, cache, ids(1, 120), 100)
    assert cache.nbytes == bytes_for(llama.config, 120, form)
    assert cache.nbytes < 0.5 * bytes_for(llama.config, 120)


def test_cropping_takes_tokens_back(llama):
    tokens = ids(1, 30)
    cache, expected = TransformersCache(), DynamicCache(config=llama.config)
    decoded_logits(llama, cache, torch.cat([tokens, ids(1, 5, seed=1)], dim=1), 35)
    cache.crop(-5)
    decoded_logits(llama, expected, tokens, 30)
    more = ids(1, 3, seed=2)
    torch.testing.assert_close(
        decoded_logits(llama, cache, more, 1), decoded_logits(llama, expected, more, 1), rtol=0, atol=1e-5
    )


def test_what_cannot_be_held_is_refused(llama):
    with pytest.raises(ValueError, match="16 channels, which group_size=32 does not divide; use 8 or 16"):
        llama(ids(1, 4), past_key_values=TransformersCache(CacheFormat(4, group_size=32)))
    config = LlamaConfig()
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match="layer 1 is 'linear_attention'.*use DynamicCache"):
        TransformersCache(config=config)
    cache = TransformersCache()
    llama(ids(1, 4), past_key_values=cache)
    with pytest.raises(CacheCannot, match="offload"):
        cache.layers[0].offload()
    with pytest.raises(ValueError, match="negative"):
        cache.crop(3)


def test_the_storey_gives_it_by_name_and_nothing_else():
    import shoestring.generation

    assert shoestring.generation.TransformersCache is TransformersCache
    with pytest.raises(AttributeError, match="has no attribute 'TransformerCache'"):
        _ = shoestring.generation.TransformerCache
