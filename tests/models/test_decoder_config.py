"""A `config.json` of any version says the same decoder; what it gets wrong is named."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.errors import BadModelFile
from shoestring.layers.rotary import LinearScaling, Llama3Scaling, Rope, YarnScaling
from shoestring.models.decoder_config import FAMILIES, Activation, DecoderConfig

from .families import MAKERS, make

OLD = {
    "model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
}  # fmt: skip


def read(**changes):
    return DecoderConfig.from_dict({k: v for k, v in {**OLD, **changes}.items() if v != "absent"})


def test_old_fields_and_defaults():
    cfg = read(rope_theta=500.0, rope_scaling=None, eos_token_id=[3, 4])
    assert (cfg.num_key_value_heads, cfg.head_dim, cfg.scale) == (4, 16, 0.25)
    assert cfg.ropes == (Rope(500.0),) * 4
    assert cfg.windows == (None,) * 4
    assert (cfg.tie_word_embeddings, cfg.qkv_bias, cfg.eos_token_id) == (False, False, (3, 4))
    assert read().ropes[0].base == 10_000.0


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_old_and_new_ways_to_scale_positions_agree(key):
    linear = {key: "linear", "factor": 4.0}
    assert read(rope_scaling=linear).ropes[0].scaling == LinearScaling(4.0)
    assert read(rope_parameters={"rope_theta": 7.0, "rope_type": "linear", "factor": 4}).ropes[0] == Rope(
        7.0, LinearScaling(4.0)
    )
    llama3 = {key: "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
    assert read(rope_scaling=llama3).ropes[0].scaling == Llama3Scaling(8.0, 1.0, 4.0, 512)
    yarn = {key: "yarn", "factor": 4, "original_max_position_embeddings": 128, "mscale": 1.0,
            "mscale_all_dim": 0.5}  # fmt: skip
    found = read(rope_scaling=yarn).ropes[0].scaling
    assert isinstance(found, YarnScaling)
    assert found.gain == pytest.approx((1 + 0.1 * 1.386294) / (1 + 0.05 * 1.386294))


def test_windows_of_each_family():
    assert read(model_type="mistral", sliding_window=9).windows == (9,) * 4
    assert read(model_type="mistral", sliding_window=None).windows == (None,) * 4
    qwen = {"model_type": "qwen2", "sliding_window": 9, "max_window_layers": 3}
    assert read(**qwen).windows == (None,) * 4
    assert read(**qwen, use_sliding_window=True).windows == (None, None, None, 9)
    kinds = ["sliding_attention", "full_attention"] * 2
    assert read(**qwen, use_sliding_window=True, layer_types=kinds).windows == (9, None, 9, None)


def test_an_old_gemma_3_of_the_hub_as_part_of_a_larger_model():
    text = {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
        "num_hidden_layers": 12, "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }  # fmt: skip
    cfg = DecoderConfig.from_dict({"model_type": "gemma3", "text_config": text})
    assert cfg.windows == (*[1024] * 5, None, *[1024] * 5, None)
    assert cfg.ropes[0] == Rope(10_000.0)
    assert cfg.ropes[5] == Rope(1_000_000.0, LinearScaling(8.0))
    assert (cfg.vocab_size, cfg.num_attention_heads, cfg.num_key_value_heads) == (262_208, 8, 4)
    assert (cfg.head_dim, cfg.scale, cfg.embedding_scale) == (256, 1 / 16, 2560**0.5)
    assert cfg.activation is Activation.GELU_TANH
    assert cfg.tie_word_embeddings
    assert cfg.transformers_class == "Gemma3ForCausalLM"
    pattern = DecoderConfig.from_dict({**text, "sliding_window_pattern": 2})
    assert pattern.windows == (1024, None) * 6


@pytest.mark.parametrize("family", MAKERS)
def test_what_transformers_writes_to_a_file_is_read(family, tmp_path):
    import json

    config = make(family).config
    config.save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    assert DecoderConfig.from_dict(document) == DecoderConfig.from_dict(config.to_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, r"model_type 'mamba' is not .*; it runs llama, mistral, .*gemma3_text\.$"),
        ({"model_type": None}, "model_type None is not one"),
        ({"hidden_size": "absent"}, "config: hidden_size is missing"),
        ({"vocab_size": -3}, "config: vocab_size is -3; it must be a whole number of 1 or more"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide num_attention_heads=4"),
        ({"head_dim": 15}, "head_dim=15 must be even"),
        ({"vocab_size": 2**63}, "vocab_size is 9223372036854775808"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
        ({"eos_token_id": "F4"}, "eos_token_id is 'F4'; it must be a token or a list of tokens"),
        ({"eos_token_id": [1, None]}, "eos_token_id is"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0; it must be a number above 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; supported are silu, gelu_pytorch_tanh"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; it must be true or false"),
        ({"rope_theta": "big"}, "rope_theta is 'big'"),
        ({"rope_scaling": 4}, "rope_scaling is 4; it must be a table of fields"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type is 'longrope'; supported are default"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: factor is missing"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}},
            "high_freq_factor=1.0 must be above low_freq_factor=4.0",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only whole heads"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0; soft caps are not supported"),
        ({"use_bidirectional_attention": True}, "only causal attention"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0"),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 4, "layer_types": ["x"]},
            "layer_types is \\['x'\\]; it must name 4 layers, each full_attention or sliding_attention",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_in_one_line(changes, message):
    with pytest.raises(BadModelFile, match=message) as caught:
        read(**changes)
    assert "\n" not in str(caught.value)


@given(
    name=st.sampled_from([*OLD, "head_dim", "rope_theta", "rope_scaling", "sliding_window", "layer_types"]),
    value=st.one_of(
        st.none(), st.integers(-5, 5), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=2),
        st.dictionaries(st.sampled_from(["rope_type", "factor"]), st.integers(), max_size=2),
    ),
    family=st.sampled_from(list(FAMILIES)),
)  # fmt: skip
def test_no_document_gives_another_error(name, value, family):
    with contextlib.suppress(BadModelFile):
        DecoderConfig.from_dict({**OLD, "model_type": family, name: value})


def test_a_decoder_made_by_hand_is_checked_too():
    import dataclasses

    cfg = read()
    with pytest.raises(ValueError, match="windows has 1 entries; num_hidden_layers is 4"):
        dataclasses.replace(cfg, windows=(None,))
    with pytest.raises(ValueError, match="a window must be 1 or more positions"):
        dataclasses.replace(cfg, windows=(0,) * 4)
    with pytest.raises(ValueError, match="head_dim=0 must be 1 or more"):
        dataclasses.replace(cfg, head_dim=0)
