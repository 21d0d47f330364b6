"""KVQuantize marks a model that can hold such a cache, and refuses one that cannot."""

import pytest
from tests.compression.models import llama
from torch import nn

from shoestring.compression import KVQuantize, KVQuantizeTokens, Recipe, apply
from shoestring.numbers import CacheFormat, TokenCacheFormat


def test_the_model_carries_the_format_and_nothing_else_changes():
    model = llama()
    before = {name: id(p) for name, p in model.named_parameters()}
    assert apply(model, KVQuantize(2, 8, 64)) is model
    assert model.kv_cache_format == CacheFormat(2, 8, 64)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert Recipe.from_json(KVQuantize(2, 8, 64).to_json()) == KVQuantize(2, 8, 64)


def test_tokens_by_themselves_with_widths_of_their_own():
    model = apply(llama(), KVQuantizeTokens(16, 16))
    assert model.kv_cache_format == TokenCacheFormat(16, 16)
    assert Recipe.from_json(KVQuantizeTokens(8, 4).to_json()) == KVQuantizeTokens(8, 4)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="heads have 8 channels, but codes of key_bits=8 come in runs of 16"):
        apply(llama(), KVQuantizeTokens())
    with pytest.raises(ValueError, match="value_bits=3 is not a width of cached keys"):
        KVQuantizeTokens(8, 3)
    with pytest.raises(ValueError, match="heads have 8 channels, which group_size=32 does not divide; use 8"):
        apply(llama(), KVQuantize())
    with pytest.raises(ValueError, match="Linear has no num_attention_heads in a config"):
        apply(nn.Linear(2, 2), KVQuantize())
    with pytest.raises(ValueError, match="bits=3 is not a width of cached keys"):
        KVQuantize(3)
    with pytest.raises(ValueError, match="KVQuantize concerns the whole model, not"):
        apply(llama(), {"*q_proj": KVQuantize(2, 8)})
