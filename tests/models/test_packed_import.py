"""Matrices in the words of AWQ and GPTQ against their meaning, weight by weight; folders of them load."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.models.families import ids_of, make
from tests.models.quantised_folders import layer, meaning, parts, write

from shoestring.errors import BadModelFile
from shoestring.layers import PackedLinear, ReorderedLinear
from shoestring.models import load_decoder
from shoestring.models.packed_import import awq_weight, gptq_weight, order_of_groups
from shoestring.models.quantised_checkpoint import WordFormat


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3, 8]), st.integers(0, 99))
def test_awq_words_mean_what_each_nibble_says(groups, words, group_size, seed):
    inputs, outputs = groups * group_size, 8 * words
    codes, zeros, scales = layer(inputs, outputs, group_size, 4, torch.Generator().manual_seed(seed))
    stored = parts("awq", codes, zeros, scales, 4)
    packed = awq_weight(stored["qweight"], stored["qzeros"], stored["scales"])
    expected = meaning(codes, zeros, scales, torch.arange(inputs) // group_size)
    assert torch.equal(packed.dequantise(), expected)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([2, 3, 4, 8]), st.integers(1, 3), st.sampled_from(["gptq", "gptq_v2"]), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
def test_gptq_words_mean_what_the_stream_says(bits, groups, method, shuffled, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = 32 * groups, 32
    codes, zeros, scales = layer(inputs, outputs, 32, bits, generator)
    g_idx = torch.arange(inputs) // 32
    if shuffled:
        g_idx = g_idx[torch.randperm(inputs, generator=generator)]
    stored = parts(method, codes, zeros, scales, bits, g_idx)
    order = order_of_groups(stored["g_idx"], groups, "g_idx")
    packed = gptq_weight(
        stored["qweight"], stored["qzeros"], stored["scales"], bits,
        zeros_less_one=method == "gptq", order=order,
    )  # fmt: skip
    found = packed.dequantise()
    expected = meaning(codes, zeros, scales, g_idx)
    assert torch.equal(found if order is None else found[:, order.long().argsort()], expected)
    layer_ = PackedLinear(packed)
    x = torch.randn(3, inputs, generator=generator)
    whole = layer_ if order is None else ReorderedLinear(layer_, order)
    torch.testing.assert_close(whole(x), x @ expected.T, rtol=1e-4, atol=1e-4)
    assert torch.equal(whole.weight, expected)


@pytest.mark.parametrize(
    ("method", "bits", "shuffled"),
    [("awq", 4, False), ("gptq", 4, False), ("gptq", 4, True), ("gptq_v2", 8, True), ("gptq_v2", 2, False)],
)
def test_folders_load_packed_and_as_floats(method, bits, shuffled, tmp_path):
    meant = write(make("llama"), tmp_path, method, bits, shuffled=shuffled)
    packed, plain = load_decoder(tmp_path, packed=True), load_decoder(tmp_path)
    for name, expected in meant.items():
        path = name.removesuffix(".weight")
        own = packed.get_submodule(path)
        assert type(own) is (ReorderedLinear if shuffled else PackedLinear)
        assert torch.equal(own.weight, expected.half())
        assert torch.equal(plain.get_submodule(path).weight, expected.half())
    packed, plain, ids = packed.float(), plain.float(), ids_of(1, 9)
    for name, expected in meant.items():
        plain.get_parameter(name).data = expected
    with torch.no_grad():
        torch.testing.assert_close(packed(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-3)
    assert not hasattr(packed.config, "quantization_config")


def test_a_folder_in_foreign_words_generates_and_is_saved_as_ours(tmp_path):
    import shoestring
    from shoestring.compression.load_model import _load

    source = tmp_path / "theirs"
    source.mkdir()
    write(make("llama"), source, "gptq", shuffled=True)
    model = _load(source, packed=True)
    shoestring.save(model, None, tmp_path / "ours")
    again = _load(tmp_path / "ours", packed=True)
    ids = ids_of(1, 7)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def folder_with(tmp_path, change, method="awq"):
    write(make("llama"), tmp_path, method)
    tensors = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    change(tensors, config["quantization_config"])
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


LAYER = "model.layers.0.self_attn.q_proj"


def put(name, value):
    return lambda tensors, config: tensors.__setitem__(f"{LAYER}.{name}", value(tensors[f"{LAYER}.{name}"]))


def say(**fields):
    return lambda tensors, config: config.update(fields)


@pytest.mark.parametrize(
    ("change", "method", "message"),
    [
        (say(version="gemv"), "awq", "another order of nibbles"),
        (say(bits=3), "awq", "codes of 3 bits"),
        (say(group_size=20), "awq", "64 input features, which group_size=20 does not divide"),
        (say(group_size=0), "awq", "group_size is 0"),
        (put("scales", lambda t: t.bfloat16()), "awq", "torch.bfloat16; these formats store torch.float16"),
        (put("scales", lambda t: t * torch.inf), "awq", "NaN or infinity"),
        (put("qweight", lambda t: t[:-4].clone()), "awq", "input features, which group_size=16 does not"),
        (put("scales", lambda t: t[:-1].clone()), "awq", r"q_proj.scales is \(2, 64\) instead of \(3, 64\)"),
        (lambda t, c: t.pop(f"{LAYER}.qzeros"), "awq", "has a qweight but no qzeros"),
        (say(checkpoint_format="marlin"), "gptq", "'marlin' orders its words"),
        (say(bits=5), "gptq", "GPTQ codes of 5 bits"),
        (say(dynamic={"x": 1}), "gptq", "dynamic"),
        (put("g_idx", lambda t: torch.zeros_like(t)), "gptq", "must be of one size"),
        (put("g_idx", lambda t: t[:5].clone()), "gptq", "does not name a group"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(change, method, message, tmp_path):
    folder = folder_with(tmp_path, change, method)
    with pytest.raises(BadModelFile, match=message):
        load_decoder(folder, packed=True)


def test_scales_of_another_type_would_overflow():
    with pytest.raises(ValueError, match="float16 is what these formats store"):
        awq_weight(torch.zeros(8, 1).int(), torch.zeros(1, 1).int(), torch.ones(1, 8))
    with pytest.raises(ValueError, match="not 3 whole groups"):
        awq_weight(torch.zeros(8, 1).int(), torch.zeros(3, 1).int(), torch.ones(3, 8).half())


def test_older_names_of_fields_are_known():
    assert WordFormat.of({"quant_method": "awq", "w_bit": 4, "q_group_size": -1}).group_size == -1
    assert WordFormat.of({"quant_method": "gptq", "bits": 4, "group_size": 32}).zeros_less_one
