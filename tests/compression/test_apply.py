"""`apply` changes every layer it should, nothing it should not, and says why where it cannot."""

import copy

import pytest
import torch
from tests.compression.models import bert, gpt2, llama
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from shoestring.compression import Recipe, RoundToNearest, apply, plan, slots, stored_bytes
from shoestring.layers import PackedEmbedding, PackedLinear
from shoestring.notices import record_fallbacks
from shoestring.numbers import ZeroPoint


@pytest.mark.parametrize("make", [llama, gpt2, bert])
@pytest.mark.parametrize("zero_point", list(ZeroPoint))
def test_every_matrix_is_rewritten_and_outputs_stay_close(make, zero_point):
    model = make()
    ids = torch.arange(24).reshape(2, 12)
    before, total = model(ids)[0], stored_bytes(model)
    recipe = RoundToNearest(8, 16, zero_point)
    chosen = plan(model, recipe, ignore=())
    removed = sum(p.nbytes for slot, _ in chosen for p in slot.module.parameters())
    added = sum(r.bytes_after(slot.module) for slot, r in chosen)
    assert apply(model, recipe, ignore=()) is model
    assert not any(type(m) in (nn.Linear, nn.Embedding) for m in model.modules())
    assert stored_bytes(model) == total - removed + added
    after = model(ids)[0]
    assert 0 < (after - before).norm() < 0.02 * before.norm()


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_tied_head_stays_tied_and_is_stored_once(make):
    model = apply(make(), RoundToNearest(4, 16), ignore=())
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, PackedEmbedding)
    assert isinstance(head, PackedLinear)
    assert embedding.packed is head.packed
    model.tie_weights()
    assert model.get_output_embeddings().packed is embedding.packed


def test_the_default_leaves_the_head_and_what_is_tied_to_it():
    tied, untied = apply(llama(), RoundToNearest(4, 16)), apply(llama(tied=False), RoundToNearest(4, 16))
    assert type(tied.model.embed_tokens) is nn.Embedding
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert type(untied.lm_head) is nn.Linear
    assert isinstance(untied.model.embed_tokens, PackedEmbedding)


def test_a_mapping_takes_exact_names_before_patterns_and_none_leaves():
    model = apply(
        llama(),
        {
            "*.q_proj": RoundToNearest(2, 16),
            "*.mlp.*": RoundToNearest(5, 16),
            "model.layers.1.mlp.up_proj": None,
            "model.layers.1.self_attn.q_proj": RoundToNearest(3, 16),
            "lm_head": RoundToNearest(6, 16),
        },
    )
    layers = model.model.layers
    assert layers[0].self_attn.q_proj.packed.form.bits == 2
    assert layers[1].self_attn.q_proj.packed.form.bits == 3
    assert layers[1].mlp.down_proj.packed.form.bits == 5
    assert type(layers[1].mlp.up_proj) is nn.Linear
    assert type(layers[0].self_attn.k_proj) is nn.Linear
    assert model.model.embed_tokens.packed.form.bits == 6  # tied to the head, which is named exactly


def test_what_cannot_be_rewritten_is_named_and_nothing_changes():
    model = llama()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="so none was") as caught:
        apply(model, RoundToNearest(4, 64))
    assert "'model.layers.0.self_attn.q_proj' has 32 input features" in str(caught.value)
    assert "group_size=64 does not divide; use 32." in str(caught.value)
    assert "down_proj" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_renormalising_embedding_and_a_subclass_are_refused_with_the_reason():
    class Scaled(nn.Linear):
        pass

    model = nn.Sequential(nn.Embedding(8, 16, max_norm=1.0), Scaled(16, 16))
    with pytest.raises(ValueError) as caught:
        apply(model, RoundToNearest(4, 16))
    assert "'0' renormalises its rows as it is used (max_norm=1.0)" in str(caught.value)
    assert "'1' is a Scaled, whose forward may differ" in str(caught.value)


def test_a_key_that_matches_nothing_names_the_nearest():
    with pytest.raises(
        ValueError,
        match="'model.layers.0.self_attn.q_prj' matches no linear layer or embedding; "
        "the nearest name is 'model.layers.0.self_attn.q_proj'",
    ):
        apply(llama(), {"model.layers.0.self_attn.q_prj": RoundToNearest()})


def test_two_recipes_for_one_tied_weight_are_refused():
    with pytest.raises(ValueError, match="share one weight but are given different recipes"):
        apply(llama(), {"lm_head": RoundToNearest(4, 16), "model.embed_tokens": RoundToNearest(5, 16)})


def test_weights_outside_layers_are_named():
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=96, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, num_local_experts=2, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    with record_fallbacks() as said:
        apply(model, RoundToNearest(4, 16))
    assert any("experts.gate_up_proj' (2×64×32)" in line and "no recipe rewrites it" in line for line in said)


def test_progress_is_reported_to_the_end():
    calls = []
    apply(llama(), RoundToNearest(4, 16), progress=lambda *call: calls.append(call))
    assert [done for _, done, _ in calls] == list(range(15))
    assert calls[0][0] == "model.layers.0.self_attn.q_proj"


def test_slots_put_the_head_before_its_embedding():
    assert slots(llama())[0].names == ("lm_head", "model.embed_tokens")


def test_a_recipe_survives_json():
    recipe = RoundToNearest(3, 64, ZeroPoint.INTEGER, 8)
    assert recipe.to_json() == {
        "recipe": "RoundToNearest", "bits": 3, "group_size": 64, "zero_point": "integer", "scale_bits": 8
    }  # fmt: skip
    assert Recipe.from_json(recipe.to_json()) == recipe
    with pytest.raises(ValueError, match="'Rond' is not a known recipe; use one of .*RoundToNearest"):
        Recipe.from_json({"recipe": "Rond"})
    with pytest.raises(
        ValueError, match="RoundToNearest has no field 'width'; its fields are bits, group_size"
    ):
        Recipe.from_json({"recipe": "RoundToNearest", "width": 3})


def test_multi_head_attention_of_torch_reads_the_weight_of_a_packed_layer():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    x = torch.randn(2, 5, 16)
    before, _ = attention(x, x, x)
    apply(attention, {"out_proj": RoundToNearest(8, 16)})
    after, _ = attention(x, x, x)
    assert 0 < (after - before).norm() < 0.02 * before.norm()
