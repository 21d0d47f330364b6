import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from shoestring.errors import BadModelFile
from shoestring.models.gguf_decoder import GGUFDecoder
from shoestring.models.gguf_file import GGUFFile
from shoestring.models.load import load_decoder

from .gguf_bytes import F32, STRING, U32, Stored, from_transformers, tensor, tiny_decoder

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "rms_norm_eps": 2.0**-17,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 5000.0}
GEMMA_ROPES = {"full_attention": ROPE, "sliding_attention": ROPE | {"rope_theta": 10_000.0}}
MAKERS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=ROPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, rope_parameters=ROPE)),
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SIZES, head_dim=128, rope_parameters=ROPE, tie_word_embeddings=True)
    ),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SIZES | {"num_hidden_layers": 7}, head_dim=16, sliding_window=8, query_pre_attn_scalar=16,
            rope_parameters=GEMMA_ROPES,
        )
    ),
}  # fmt: skip


def make(name):
    torch.manual_seed(0)
    model = MAKERS[name]().eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def write(path, content):
    path.write_bytes(bytes(content.write().data))
    return path


def opened(path, content):
    return GGUFDecoder(GGUFFile(write(path, content)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("name", MAKERS)
def test_gives_back_the_model_it_was_made_of(name, path):
    model = make(name)
    decoder = opened(path, from_transformers(model, name))
    expected = model.state_dict()
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert set(decoder) == set(expected) - tied
    for key in decoder:
        # 1 + w is rounded in the file, and w is what is left of it.
        exact = not (name == "gemma3" and key.endswith("norm.weight"))
        torch.testing.assert_close(decoder[key], expected[key], rtol=0, atol=0 if exact else 1e-6)
    ids = torch.randint(61, (2, 20), generator=torch.Generator().manual_seed(1))
    found = load_decoder(path)(ids).logits
    torch.testing.assert_close(found, model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_every_tensor_is_bit_for_bit_what_transformers_reads(name, path):
    decoder = opened(path, from_transformers(make(name), name).with_pair("general.name", STRING, "x"))
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    expected = theirs.state_dict()
    for key in decoder:
        assert torch.equal(decoder[key], expected[key]), key
    for key in ("hidden_size", "num_hidden_layers", "rms_norm_eps", "tie_word_embeddings", "vocab_size"):
        assert getattr(theirs.config, key) == decoder.config[key]


@pytest.mark.slow
def test_the_built_in_file_is_bit_for_bit_what_transformers_reads():
    from shoestring.models.built_in import built_in_file

    path = built_in_file("smollm2-135m")
    decoder = GGUFDecoder(GGUFFile(path))
    expected = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).state_dict()
    assert set(decoder) == set(expected) - {"lm_head.weight"}
    for key in decoder:
        assert torch.equal(decoder[key], expected[key]), key


def test_biases_of_queries_change_places_too(path):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    content = from_transformers(model, "llama")
    decoder = opened(path, content)
    assert (decoder.config["attention_bias"], decoder.config["mlp_bias"]) == (True, True)
    for key in decoder:
        assert torch.equal(decoder[key], model.state_dict()[key]), key


def test_other_types(path):
    decoder = opened(path, tiny_decoder("gemma3"))
    name = "model.layers.0.input_layernorm.weight"
    assert decoder.read(name, torch.float64).dtype is torch.float64
    assert torch.equal(decoder.read(name, torch.bfloat16), decoder[name].bfloat16())


def test_scalings_of_positions(path):
    content = tiny_decoder("llama")
    linear = content.with_pair("llama.rope.scaling.type", STRING, "linear").with_pair(
        "llama.rope.scaling.factor", F32, 4.0
    )
    assert opened(path, linear).config["rope_parameters"] == {
        "rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0,
    }  # fmt: skip
    yarn = linear.with_pair("llama.rope.scaling.type", STRING, "yarn")
    yarn = yarn.with_pair("llama.rope.scaling.original_context_length", U32, 32)
    assert opened(path, yarn).config["rope_parameters"]["original_max_position_embeddings"] == 32
    with pytest.raises(BadModelFile, match="'su'; known are none, linear, yarn"):
        opened(path, content.with_pair("llama.rope.scaling.type", STRING, "su"))


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_divisors_of_llama_3_are_recognised(factor, path):
    parameters = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(head_dim=64, max_position_embeddings=131072, rope_parameters=parameters)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500_000.0 ** -(torch.arange(0, 64, 2) / 64)
    content = tiny_decoder("llama").with_pair("llama.rope.freq_base", F32, 500_000.0)
    divisors = tensor("rope_freqs.weight", (plain / scaled).numpy())
    decoder = opened(path, content.but(tensors=(*content.tensors, divisors)))
    assert decoder.config["rope_parameters"] == parameters
    other = tensor("rope_freqs.weight", np.full(32, 3.0))
    with pytest.raises(BadModelFile, match="no rule that is known"):
        opened(path, content.but(tensors=(*content.tensors, other)))


LLAMA = tiny_decoder("llama")


def renamed(old, new):
    return LLAMA.but(
        tensors=tuple(Stored(new, t.dims, t.kind, t.data) if t.name == old else t for t in LLAMA.tensors)
    )


HOSTILE = {
    "another architecture": (LLAMA.with_pair("general.architecture", STRING, "gpt2"), "known are llama"),
    "no architecture": (LLAMA.without("general.architecture"), "general.architecture is None"),
    "architectures": (
        LLAMA.with_pair("general.architecture", 9, (U32, [1, 2])),
        "instead of a text",
    ),
    "a number as architecture": (LLAMA.with_pair("general.architecture", U32, 3), "is 3 instead of a text"),
    "no layers": (LLAMA.without("llama.block_count"), "block_count is None"),
    "a giant count of layers": (
        LLAMA.with_pair("llama.block_count", U32, 2**31 - 1),
        "2147483647, but it has 20",
    ),
    "no heads": (LLAMA.with_pair("llama.attention.head_count", U32, 0), "head_count is 0"),
    "heads per layer": (
        LLAMA.with_pair("llama.attention.head_count_kv", 9, (U32, [1, 2])),
        "instead of a count",
    ),
    "an array of experts": (LLAMA.with_pair("llama.expert_count", 9, (U32, [1, 2])), "mixture of experts"),
    "experts": (LLAMA.with_pair("llama.expert_count", U32, 8), "mixture of experts"),
    "no end of a norm": (
        LLAMA.with_pair("llama.attention.layer_norm_rms_epsilon", F32, float("nan")),
        "positive",
    ),
    "odd heads": (LLAMA.with_pair("llama.attention.key_length", U32, 7), "even number"),
    "half of a head turns": (LLAMA.with_pair("llama.rope.dimension_count", U32, 4), "even number"),
    "another vocabulary": (LLAMA.with_pair("llama.vocab_size", U32, 3), "differs from"),
    "an end token outside": (LLAMA.with_pair("tokenizer.ggml.eos_token_id", U32, 10**6), "no token of"),
    "no embedding": (LLAMA.without("token_embd.weight"), "no matrix token_embd.weight"),
    "a tensor of another model": (
        renamed("blk.0.ffn_up.weight", "blk.0.ssm_a"),
        "'blk.0.ssm_a' has no place",
    ),
    "a number spelled twice": (renamed("blk.0.ffn_up.weight", "blk.00.ffn_up.weight"), "has no place"),
    "more heads than rows": (
        LLAMA.with_pair("llama.attention.head_count", U32, 5),
        "instead of 5 heads of 8",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refusals(name, path):
    content, reason = HOSTILE[name]
    with pytest.raises(BadModelFile) as caught:
        opened(path, content)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
