"""AWQ: folding leaves the function as it is, the search finds the best scales, rounding follows them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.families import MAKERS, ids_of, make
from torch import nn

import shoestring
from shoestring.compression import (
    AWQ,
    GPTQ,
    Recipe,
    RoundToNearest,
    apply,
    apply_in_sequence,
    plan,
    stored_bytes,
)
from shoestring.compression.awq import channel_scales, naive_best_alpha, scale_block, scaled_rounding
from shoestring.compression.scale_folding import fold_places, fold_scales
from shoestring.layers import PackedLinear
from shoestring.models.decoder import Decoder
from shoestring.numbers import ZeroPoint
from shoestring.numbers.grouped_affine import GroupedAffine


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("family", list(MAKERS))
@pytest.mark.parametrize("ours", [True, False])
def test_folding_any_scales_changes_nothing(family, ours):
    model = make(family)
    if ours:
        model = Decoder.from_transformers(model)
    ids, generator = ids_of(2, 9), torch.Generator().manual_seed(3)
    before = logits(model, ids)
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for block in model.model.layers:
        places = fold_places(block)
        assert len(places) == 4, "norms to queries and gates, values to outputs, up to down"
        for place in places:
            size = block.get_submodule(place.readers[0]).in_features
            scales = place.tied(torch.rand(size, generator=generator) * 3 + 0.3)
            fold_scales(block, place, scales)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, old[name])]
    assert len([name for name in changed if name.endswith("_proj.weight")]) == 7 * len(model.model.layers)
    torch.testing.assert_close(logits(model, ids), before, rtol=2e-4, atol=2e-4)


def test_folding_leaves_who_shares_the_weights_alone():
    theirs = make("llama")
    ids = ids_of(1, 5)
    before = logits(theirs, ids)
    ours = Decoder.from_transformers(theirs)
    for block in ours.model.layers:
        for place in fold_places(block):
            size = block.get_submodule(place.readers[0]).in_features
            fold_scales(block, place, torch.full((size,), 3.0))
    # Linear layers are taken over as they are: of these the model is one.
    assert torch.equal(theirs.model.norm.weight, ours.model.norm.weight)
    assert not torch.allclose(logits(theirs, ids), before), "its layers are scaled, its norms are not"
    assert (
        all(
            torch.equal(a.input_layernorm.weight * 3, b.input_layernorm.weight * 9)
            for a, b in zip(ours.model.layers, ours.model.layers, strict=True)
        )
        is False
    )


@given(st.integers(1, 40), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_scales_are_balanced_powers_of_magnitudes(size, alpha, seed):
    m = torch.rand(size, generator=torch.Generator().manual_seed(seed)) * 10
    m[0] = 0.0
    s = channel_scales(m, alpha)
    assert (s.max() * s.min()).item() == pytest.approx(1.0, rel=1e-4)
    floor = m.clamp(min=1e-4)
    torch.testing.assert_close(s / s[-1], (floor / floor[-1]) ** alpha, rtol=1e-3, atol=0)
    assert torch.equal(channel_scales(m, 0.0), torch.ones(size))


@given(st.integers(1, 5), st.integers(1, 3), st.sampled_from([1, 3, 8]), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_scaled_rounding_is_rounding_of_the_scaled(rows, groups, group_size, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, groups * group_size, generator=generator)
    scales = torch.rand(groups * group_size, generator=generator) + 0.5
    form = GroupedAffine(4, group_size, ZeroPoint.INTEGER)
    found = scaled_rounding(form, weight, scales) * scales
    # Every value is on the grid of its group: as far from the scaled weight as half a step, at most.
    grouped = (weight * scales).unflatten(1, (-1, group_size))
    span = grouped.amax(-1).clamp(min=0) - grouped.amin(-1).clamp(max=0)
    error = (found.unflatten(1, (-1, group_size)) - grouped).abs().amax(-1)
    assert (error <= span / 15 * 1.02 + 1e-6).all()


def test_the_search_of_one_layer_is_the_naive_one():
    model = Decoder.from_transformers(make("llama"))
    block = model.model.layers[0]
    x = torch.randn(2, 11, 48, generator=torch.Generator().manual_seed(1)) * torch.logspace(-1, 1, 48)
    seen = []
    handle = block.mlp.down_proj.register_forward_pre_hook(lambda _, a: seen.append(a[0].flatten(0, 1)))
    ids = ids_of(2, 11)
    calls = []
    spy = block.register_forward_pre_hook(lambda _, a, k: calls.append((a, k)), with_kwargs=True)
    logits(model, ids)
    spy.remove()
    calls = [((x, *args[1:]), kwargs) for args, kwargs in calls]
    seen.clear()
    with torch.no_grad():
        block(*calls[0][0], **calls[0][1])
    handle.remove()
    weight, steps = block.mlp.down_proj.weight.detach().clone(), 10
    recipe = AWQ(3, 16, steps=steps)
    alpha = naive_best_alpha(recipe.form, weight, seen[0], steps)
    scale_block(block, {"mlp.down_proj": recipe}, calls)
    expected = weight * channel_scales(seen[0].abs().mean(0), alpha)
    torch.testing.assert_close(block.mlp.down_proj.weight.detach(), expected, rtol=1e-4, atol=1e-5)


def test_scaling_a_block_leaves_its_output_and_beats_plain_rounding():
    torch.manual_seed(0)
    model = Decoder.from_transformers(make("llama, tied"))
    # One channel in eight is loud, as in trained models.
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.data[::8] *= 12
    batches = [ids_of(2, 24, seed) for seed in range(3)]
    exact = [logits(model, ids) for ids in batches]
    plain, scaled = (Decoder.from_transformers(make("llama, tied")) for _ in range(2))
    for other in (plain, scaled):
        other.load_state_dict(model.state_dict())
    apply(plain, RoundToNearest(3, 16, ZeroPoint.INTEGER))
    assert apply_in_sequence(scaled, AWQ(3, 16), batches) is scaled
    assert all(isinstance(scaled.get_submodule(s.name), PackedLinear) for s, _ in plan(model, AWQ(3, 16)))

    def error(other):
        pairs = zip(batches, exact, strict=True)
        return sum((logits(other, ids) - e).square().sum().item() for ids, e in pairs)

    assert error(scaled) < 0.8 * error(plain)


def test_layers_that_are_not_rounded_are_scaled_along():
    model = Decoder.from_transformers(make("llama, tied"))
    ids = [ids_of(2, 24, 0)]
    before = logits(model, ids[0])
    apply_in_sequence(model, {"*.q_proj": AWQ(8, 16), "*.gate_proj": GPTQ(8, 16)}, ids)
    assert type(model.model.layers[0].self_attn.k_proj) is nn.Linear
    torch.testing.assert_close(logits(model, ids[0]), before, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("ours", [True, False])
def test_a_saved_folder_gives_the_same_outputs(ours, tmp_path):
    model = make("llama, tied")
    if ours:
        model = Decoder.from_transformers(model)
    recipe = AWQ(4, 16, steps=3)
    sizes = sum(r.bytes_after(s.module) for s, r in plan(model, recipe))
    rest = stored_bytes(model) - sum(s.module.weight.nbytes for s, _ in plan(model, recipe))
    apply_in_sequence(model, recipe, [ids_of(2, 24)])
    assert stored_bytes(model) == sizes + rest
    shoestring.save(model, None, tmp_path / "m", recipe=recipe)
    ids, loaded = ids_of(1, 9, 5), shoestring.load(tmp_path / "m")
    assert type(loaded).__name__ == "LlamaForCausalLM"
    loaded = Decoder.from_transformers(loaded) if ours else loaded
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert shoestring.compression.read_recipe(tmp_path / "m") == recipe


def test_the_recipe_survives_json():
    recipe = AWQ(4, 64, ZeroPoint.REAL, 16, 7)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert (AWQ().group_size, AWQ().steps) == (128, 20)


def test_what_cannot_be_scaled_is_named_before_anything_changes():
    model = Decoder.from_transformers(make("llama, tied"))
    before = model.state_dict()
    with pytest.raises(ValueError, match="AWQ .* works on whole blocks; use apply_in_sequence"):
        apply(model, AWQ(4, 16))
    untied = Decoder.from_transformers(make("llama"))
    with pytest.raises(ValueError, match=r"nothing before 'lm_head' \(1 layers\) can take the scales"):
        apply_in_sequence(untied, {"lm_head": AWQ(4, 16), "*_proj": AWQ(4, 16)}, [ids_of(1, 9)])
    with pytest.raises(ValueError, match="is an embedding: nothing before it takes its scales"):
        apply_in_sequence(untied, AWQ(4, 16), [ids_of(1, 9)])
    with pytest.raises(ValueError, match="48 input features, which group_size=32 does not divide"):
        apply_in_sequence(model, AWQ(4, 32), [ids_of(1, 9)])
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    with pytest.raises(ValueError, match="steps=0"):
        AWQ(steps=0)


def test_a_block_with_other_names_has_no_place():
    block = nn.ModuleDict({"attention": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    assert fold_places(block) == []
