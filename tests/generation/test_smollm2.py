"""The decode loop on a trained model: SmolLM2-135M in float32."""

import pytest
import torch

from shoestring.compression.load_model import load_model
from shoestring.generation.decode import generate
from shoestring.generation.transformers_cache import TransformersCache
from shoestring.numbers.cache_format import CacheFormat

PROMPT = "The three laws of thermodynamics say that"


@pytest.fixture(scope="module")
def smollm2():
    return load_model("smollm2-135m")


@pytest.mark.slow
@pytest.mark.parametrize("form", [None, CacheFormat(4, 32, tail_tokens=512)], ids=["own", "tail"])
def test_greedy_text_equals_transformers(smollm2, form):
    model, tokenizer = smollm2
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    expected = model.generate(ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1] :].tolist()
    result = generate(model, PROMPT, tokenizer, max_new_tokens=64, cache=form and TransformersCache(form))
    assert result.tokens == expected
    assert result.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert len(set(expected)) > 20


@pytest.mark.slow
def test_a_cache_in_8_bits_keeps_the_next_token_logits_and_one_in_2_bits_is_worse(smollm2):
    model, tokenizer = smollm2
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
