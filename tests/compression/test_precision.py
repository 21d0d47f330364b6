"""Precisions in short form, the recipes that they stand for, and float-coded models in saved folders."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.families import ids_of, make

import shoestring
from shoestring.compression import (
    AWQ,
    FloatQuantize,
    Precision,
    PrecisionPlan,
    RoundToNearest,
    StoredFloat,
    WeightKind,
    apply,
    plan,
)
from shoestring.kernels.grouped_linear import Activations
from shoestring.layers import FloatCodedLinear
from shoestring.numbers import TokenCacheFormat, ZeroPoint

precisions = st.builds(
    Precision, st.sampled_from(WeightKind), st.sampled_from([16, 8]), st.sampled_from([16, 8, 4]),
    st.sampled_from([16, 8, 4]),
)  # fmt: skip


@given(precisions)
def test_what_is_printed_is_read_again(precision):
    assert Precision.parse(str(precision)) == precision
    assert Precision.parse(str(precision).lower()) == precision


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("W4A16KV8", Precision(WeightKind.INT4, 16, 8, 8)),
        ("W4", Precision(WeightKind.INT4)),
        ("wmxfp4a8", Precision(WeightKind.MXFP4, 8)),
        ("WFP8K8V4", Precision(WeightKind.FP8, 16, 8, 4)),
        ("W16KV8-4", Precision(WeightKind.FLOAT, 16, 8, 4)),
    ],
)
def test_forms(text, expected):
    assert Precision.parse(text) == expected


@pytest.mark.parametrize("text", ["", "A16", "W5", "W4A4", "W4 A16", "W4KV", "KV8W4", "W4A16KV8!", "W4K8"])
def test_other_forms_are_refused(text):
    with pytest.raises(ValueError, match="is not of the form W"):
        Precision.parse(text)


def test_bits_that_no_cache_has_are_refused():
    with pytest.raises(ValueError, match="key_bits=5; keys and values are stored in 16, 8 or 4"):
        Precision.parse("W4KV5-8")
    with pytest.raises(ValueError, match="value_bits=2"):
        Precision.parse("W4K8V2")
    with pytest.raises(ValueError, match="activation_bits=4"):
        Precision(activation_bits=4)


def test_a_precision_is_recipes_activations_and_a_cache():
    four = Precision.parse("W4A8KV4")
    assert four.recipe(64) == RoundToNearest(4, 64, ZeroPoint.INTEGER)
    assert four.recipe(64, search_scales=True) == AWQ(4, 64)
    assert four.activations is Activations.INT8
    assert four.cache_format == TokenCacheFormat(4, 4)
    assert Precision().recipe() is None
    assert Precision().cache_format is None
    assert Precision().activations is Activations.FLOAT32
    assert Precision.parse("W8").recipe(32) == RoundToNearest(8, 32)
    assert Precision.parse("Wfp8").recipe() == FloatQuantize(StoredFloat.E4M3)
    assert Precision.parse("W16K8V4").cache_format == TokenCacheFormat(8, 4)


def test_layers_of_their_own_precision():
    found = PrecisionPlan.parse("W4A16KV8; lm_head=W8; model.layers.0.*=W16 ;*.down_proj=Wmxfp4")
    assert found.model == Precision.parse("W4A16KV8")
    model = make("llama")
    rewritten = {slot.name: recipe for slot, recipe in plan(model, found.recipes(16) | {"*.down_proj": None})}
    assert rewritten["lm_head"] == RoundToNearest(8, 16)
    assert not any(name.startswith("model.layers.0.") for name in rewritten)
    assert rewritten["model.layers.1.mlp.up_proj"] == RoundToNearest(4, 16, ZeroPoint.INTEGER)
    assert "model.embed_tokens" not in rewritten
    assert found.recipes()["*.down_proj"] == FloatQuantize(StoredFloat.MXFP4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("W4; lm_head", "'lm_head' is not of the form NAME=W"),
        ("W4; a=W8; a=W4", "'a' is given a precision twice"),
        ("W4; a=W8A8", "layers differ in their weights only, such as a=W8"),
        ("W9; a=W8", "precision 'W9' is not of the form"),
    ],
)
def test_plans_of_another_form_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        PrecisionPlan.parse(text)


@pytest.mark.parametrize("stored", StoredFloat)
def test_float_coded_models_are_saved_and_loaded(stored, tmp_path):
    model, recipe = make("llama, biases"), FloatQuantize(stored)
    mapping = {"*.down_proj": recipe}
    sizes = sum(r.bytes_after(s.module) for s, r in plan(model, mapping))
    apply(model, mapping)
    layer = model.model.layers[0].mlp.down_proj
    assert type(layer) is FloatCodedLinear
    assert sizes - sum(b.mlp.down_proj.bias.nbytes for b in model.model.layers) == sum(
        part.nbytes for b in model.model.layers for part in b.mlp.down_proj.stored.values()
    )
    shoestring.save(model, None, tmp_path / "m", recipe=mapping)
    ids = ids_of(1, 9)
    with torch.no_grad():
        assert torch.equal(shoestring.load(tmp_path / "m")(ids).logits, model(ids).logits)


def test_what_cannot_be_float_coded_is_named():
    with pytest.raises(ValueError, match="48 input features, which blocks of 32 do not divide"):
        apply(make("llama"), {"*.q_proj": FloatQuantize()})
    with pytest.raises(ValueError, match="is an embedding; FloatQuantize stores linear layers"):
        apply(make("llama"), {"model.embed_tokens": FloatQuantize(StoredFloat.E4M3)})
