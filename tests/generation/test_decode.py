"""The decode loop on a tiny transformers model, held against the library's own `generate`."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shoestring.generation.decode import Finish, generate, stream
from shoestring.generation.sampling import Sampling
from shoestring.generation.transformers_cache import TransformersCache
from shoestring.numbers.cache_format import CacheFormat

PROMPT = "héllo €"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=257, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    llama = LlamaForCausalLM(config).eval()
    # Larger weights: the tokens of an untrained model would else repeat at once.
    for parameter in llama.parameters():
        parameter.data *= 3
    return llama


@pytest.fixture(scope="module")
def expected(model, byte_tokenizer):
    """The library's own 64 greedy tokens."""
    ids = torch.tensor([byte_tokenizer.encode(PROMPT)])
    return model.generate(ids, max_new_tokens=64, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()


def test_the_output_is_not_trivial(expected):
    assert len(set(expected)) > 8


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_greedy_tokens_and_text_equal_transformers(model, byte_tokenizer, expected, chunk):
    seen = []
    result = generate(
        model, PROMPT, byte_tokenizer, max_new_tokens=64, prefill_chunk=chunk, on_token=seen.append
    )
    assert result.tokens == expected
    assert result.text == byte_tokenizer.decode(expected, skip_special_tokens=True)
    assert "".join(piece.text for piece in seen) == result.text
    assert [piece.token for piece in seen if piece.token is not None] == expected
    assert (result.finish, result.prompt_tokens) == (Finish.LENGTH, len(PROMPT.encode()))
    assert result.tokens_per_second > 0
    assert result.prompt_seconds > 0


def test_ids_go_in_without_a_tokenizer(model, byte_tokenizer, expected):
    result = generate(model, byte_tokenizer.encode(PROMPT), max_new_tokens=64)
    assert (result.tokens, result.text) == (expected, "")


def test_an_end_token_ends_the_output_and_is_kept(model, byte_tokenizer, expected):
    end = next(t for i, t in enumerate(expected) if i > 4 and t not in expected[:i])
    result = generate(model, PROMPT, byte_tokenizer, max_new_tokens=64, stop_tokens=[end])
    assert result.tokens == expected[: expected.index(end) + 1]
    assert result.finish is Finish.END_TOKEN


def test_the_models_own_end_token_is_known(model, byte_tokenizer, expected, monkeypatch):
    monkeypatch.setattr(model.generation_config, "eos_token_id", [9999, expected[6]])
    result = generate(model, PROMPT, byte_tokenizer, max_new_tokens=64)
    assert result.tokens == expected[: expected.index(expected[6]) + 1]


def test_a_stop_string_ends_the_text_before_it(model, byte_tokenizer, expected):
    text = byte_tokenizer.decode(expected)
    stop = text[5:8]
    result = generate(model, PROMPT, byte_tokenizer, max_new_tokens=64, stop=[stop])
    assert result.text == text[: text.index(stop)]
    assert result.finish is Finish.STOP_STRING
    assert len(result.tokens) < 64


def test_the_context_is_a_limit_that_is_reported(model):
    result = generate(model, [5] * 120, max_new_tokens=64)
    assert (len(result.tokens), result.finish) == (8, Finish.CONTEXT)


def test_a_seed_repeats_a_draw_and_another_does_not(model):
    hot = Sampling(temperature=1.5, top_k=50, repetition_penalty=1.2)
    one, again, other = (
        generate(model, [1, 2, 3], sampling=hot, seed=s, max_new_tokens=40) for s in (7, 7, 8)
    )
    assert one.tokens == again.tokens
    assert one.tokens != other.tokens


def test_a_penalty_that_forbids_repetition_looks_at_prompt_and_output(model):
    result = generate(model, [1, 2, 3], sampling=Sampling(repetition_penalty=1e6), max_new_tokens=100)
    assert len({1, 2, 3, *result.tokens}) == 103


def test_leaving_the_stream_early_keeps_what_there_is(model, byte_tokenizer, expected):
    output = stream(model, PROMPT, byte_tokenizer, max_new_tokens=64)
    assert [piece.token for _, piece in zip(range(3), output, strict=False)] == expected[:3]
    assert (output.result.tokens, output.result.finish) == (expected[:3], None)


@pytest.mark.parametrize("form", [None, CacheFormat(4, 16, tail_tokens=200)])
def test_a_cache_of_ours_gives_the_same_tokens(model, byte_tokenizer, expected, form):
    result = generate(model, PROMPT, byte_tokenizer, max_new_tokens=64, cache=TransformersCache(form))
    assert result.tokens == expected


def test_a_models_cache_format_is_used_and_saves_bytes(model, byte_tokenizer, monkeypatch):
    plain = generate(model, [7] * 40, max_new_tokens=60)
    monkeypatch.setattr(model, "kv_cache_format", CacheFormat(4, 16, tail_tokens=8), raising=False)
    packed = generate(model, [7] * 40, max_new_tokens=60)
    assert packed.cache_bytes < plain.cache_bytes / 2


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ("", {}, "prompt is empty"),
        ([], {}, "prompt is empty"),
        ([3, 257], {}, "token 257 of the prompt is not in a vocabulary of 257"),
        ([1] * 128, {}, "128 tokens, the context of this model 128: shorten the prompt to 127"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([1], {"prefill_chunk": -1}, "prefill_chunk=-1"),
        ([1], {"stop": [""]}, "empty stop string"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(model, byte_tokenizer, prompt, settings, message):
    with pytest.raises(ValueError, match=message):
        stream(model, prompt, byte_tokenizer, **settings)


def test_text_needs_a_tokenizer_and_a_model_must_generate(model):
    with pytest.raises(ValueError, match="pass tokenizer="):
        stream(model, "text")
    with pytest.raises(TypeError, match="Linear does not generate"):
        stream(torch.nn.Linear(2, 2), [1])
