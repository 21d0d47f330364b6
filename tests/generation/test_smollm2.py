"""The decode loop on a trained model: SmolLM2-135M in float32."""

import pytest
import torch

from shoestring.compression.load_model import load_model, load_transformers_model
from shoestring.generation.decode import generate
from shoestring.generation.transformers_cache import TransformersCache
from shoestring.models.decoder import Decoder
from shoestring.numbers.cache_format import CacheFormat

PROMPT = "The three laws of thermodynamics say that"


@pytest.fixture(scope="module")
def library():
    return load_transformers_model("smollm2-135m")


@pytest.fixture(scope="module")
def expected(library):
    """64 tokens as transformers generates them."""
    model, tokenizer = library
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    tokens = model.generate(ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1] :].tolist()
    assert len(set(tokens)) > 20
    return tokens


@pytest.mark.slow
@pytest.mark.parametrize("form", [None, CacheFormat(4, 32, tail_tokens=512)], ids=["own", "tail"])
def test_greedy_text_equals_transformers(library, expected, form):
    model, tokenizer = library
    result = generate(model, PROMPT, tokenizer, max_new_tokens=64, cache=form and TransformersCache(form))
    assert result.tokens == expected
    assert result.text == tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.slow
def test_greedy_text_of_the_decoder_equals_transformers(expected):
    model, tokenizer = load_model("smollm2-135m")
    assert isinstance(model, Decoder)
    assert generate(model, PROMPT, tokenizer, max_new_tokens=64).tokens == expected


@pytest.mark.slow
def test_a_cache_in_8_bits_keeps_the_next_token_logits_and_one_in_2_bits_is_worse(library):
    model, tokenizer = library
    ids = torch.tensor([tokenizer.encode(PROMPT * 20)])
    errors = {}
    with torch.inference_mode():
        exact = model(ids).logits[:, -32:]
        for bits in (8, 4, 2):
            cache = TransformersCache(CacheFormat(bits, 32, tail_tokens=16))
            model(ids[:, :-32], past_key_values=cache)
            rest = [model(token[None], past_key_values=cache).logits for token in ids[:, -32:].unbind(1)]
            errors[bits] = (torch.cat(rest, dim=1) - exact).square().mean().sqrt().item()
    spread = exact.std().item()
    assert errors[8] < 0.02 * spread
    assert errors[8] < errors[4] / 4 < errors[2] / 8
