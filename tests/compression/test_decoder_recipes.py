"""Recipes, calibration, profiles and saved folders take a `Decoder` as they take a transformers model."""

import json

import pytest
import torch
from tests.models.families import MAKERS, VOCAB, ids_of, make
from transformers import AutoModelForCausalLM

import shoestring
from shoestring.compression import (
    GPTQ,
    KVQuantize,
    LowRank,
    RoundToNearest,
    apply,
    apply_in_sequence,
    capture,
    slots,
    stored_bytes,
)
from shoestring.compression.cache_choice import cache_options
from shoestring.compression.sensitivity import curvature_loss, measure_sensitivity
from shoestring.layers import LowRankLinear, PackedEmbedding, PackedLinear
from shoestring.models.decoder import Decoder
from shoestring.numbers import ZeroPoint
from shoestring.yardstick.language_quality import without_cache


def rewrite(model, tied):
    """GPTQ in attention, 5 bits in the feed-forward, one map in low rank, 8 bits in table and head."""
    ids = [ids_of(2, 24, seed) for seed in range(3)]
    recipe = {
        "*.self_attn.*": GPTQ(4, 16, ZeroPoint.INTEGER),
        "model.layers.1.mlp.up_proj": LowRank(8),
        "*.mlp.*": RoundToNearest(5, 16),
    }
    if not tied:
        recipe["model.embed_tokens"] = RoundToNearest(8, 16)
    return apply(model, recipe, calibration=capture(model, ids))


@pytest.mark.parametrize(
    "family", ["llama, tied", "llama", "qwen 2", "qwen 3", "gemma 3", "mistral, window of 7"]
)
def test_a_rewritten_decoder_saves_as_a_transformers_model(family, tmp_path):
    theirs = make(family)
    decoder = Decoder.from_transformers(theirs)
    tied = decoder.cfg.tie_word_embeddings
    assert rewrite(decoder, tied) is decoder
    apply(decoder, KVQuantize(4, 8, 16)) if decoder.cfg.head_dim % 8 == 0 else None
    shoestring.save(decoder, None, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["architectures"] == [type(theirs).__name__]
    ids = ids_of(2, 20, seed=9)
    with torch.no_grad():
        expected = decoder(ids).logits
        assert (expected - theirs(ids).logits).abs().max() > 1e-2, "the original model is left as it was"
        loaded = shoestring.load(tmp_path / "m")
        assert type(loaded) is type(theirs)
        auto = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
        for model in (loaded, auto):
            torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-4)
        again = Decoder.from_transformers(loaded)
        assert torch.equal(again(ids).logits, expected)
    kinds = {name: type(module) for name, module in decoder.named_modules()}
    assert {name: type(module) for name, module in again.named_modules()} == kinds
    assert kinds["model.layers.1.mlp.up_proj"] is LowRankLinear
    assert kinds["model.layers.0.self_attn.q_proj"] is PackedLinear
    assert again.kv_cache_format == decoder.kv_cache_format
    assert stored_bytes(again) == stored_bytes(decoder)


@pytest.mark.parametrize("family", ["llama, tied", "gemma 3"])
def test_a_tied_packed_table_stays_one_and_keeps_its_scale(family, tmp_path):
    theirs = make(family)
    decoder, ids = Decoder.from_transformers(theirs), ids_of(1, 9)
    apply(decoder, {"lm_head": RoundToNearest(8, 16)})
    table = decoder.model.embed_tokens
    assert isinstance(table, PackedEmbedding)
    assert decoder.lm_head.packed is table.packed
    assert table.scale == decoder.cfg.embedding_scale
    with torch.no_grad():
        exact, logits = theirs(ids).logits, decoder(ids).logits
        assert 0 < (logits - exact).norm() < 0.05 * exact.norm()
        shoestring.save(decoder, None, tmp_path / "m")
        loaded = shoestring.load(tmp_path / "m")
        torch.testing.assert_close(loaded(ids).logits, logits, rtol=0, atol=1e-4)
        again = Decoder.from_transformers(loaded)
        assert again.lm_head.packed is again.model.embed_tokens.packed
        assert torch.equal(again(ids).logits, logits)


def test_the_loss_of_a_scaled_table_counts_its_scale():
    """Moving a row moves the output by the scale: checked against the divergence that is really measured."""
    # Without padding tokens, whose rows are zero: the curvature there is that of a division by nothing.
    decoder, windows = Decoder.from_transformers(make("gemma 3")), ids_of(24, 24).clamp(min=1)
    generator = torch.Generator().manual_seed(0)
    found = measure_sensitivity(decoder, windows, gradient_windows=24, generator=generator)
    (slot,) = [s for s in slots(decoder) if "model.embed_tokens" in s.names]
    table = decoder.model.embed_tokens
    step = 1e-3 * torch.randn(table.weight.shape, generator=generator)
    # Of the table alone: its own weight, apart from the head.
    moved = Decoder.from_transformers(make("gemma 3"))
    moved.model.embed_tokens.weight = torch.nn.Parameter(table.weight + step)
    with torch.no_grad():
        p, q = (m(windows).logits.double().log_softmax(-1) for m in (decoder, moved))
    measured = (p.exp() * (p - q)).sum(-1).mean().item()
    counts = found.calibration.token_counts["model.embed_tokens"]
    predicted = curvature_loss(step, counts / counts.sum(), found.table_gradients["model.embed_tokens"])
    assert slot.name == "lm_head"
    assert measured / 3 < predicted < 3 * measured


def test_a_rewritten_transformers_model_becomes_a_decoder():
    theirs = rewrite(make("llama"), tied=False)
    ours = Decoder.from_transformers(theirs)
    ids = ids_of(2, 20)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", MAKERS)
def test_calibration_and_sensitivity_are_those_of_the_transformers_model(family):
    theirs = make(family)
    ours = Decoder.from_transformers(make(family))
    assert [s.names for s in slots(ours)] == [s.names for s in slots(theirs)]
    windows = ids_of(3, 20)
    found = []
    for model in (ours, theirs):
        generator = torch.Generator().manual_seed(0)
        found.append(measure_sensitivity(model, windows, gradient_windows=2, generator=generator))
    one, other = found
    assert one.output_gradients.keys() == other.output_gradients.keys()
    for name, gradient in one.output_gradients.items():
        torch.testing.assert_close(gradient, other.output_gradients[name], rtol=2e-2, atol=1e-6)
    for name, moments in one.calibration.moments.items():
        torch.testing.assert_close(
            moments.second_moment, other.calibration.moments[name].second_moment, rtol=1e-3, atol=1e-3
        )
    counts = one.calibration.token_counts["model.embed_tokens"]
    assert torch.equal(counts, torch.bincount(windows.flatten(), minlength=VOCAB))
    shared = one.calibration.moments
    assert shared["model.layers.0.self_attn.q_proj"] is shared["model.layers.0.self_attn.v_proj"]
    assert shared["model.layers.0.mlp.gate_proj"] is shared["model.layers.0.mlp.up_proj"]


def test_block_by_block_calibration_goes_through_the_layers():
    batches = [ids_of(2, 24, seed) for seed in range(3)]
    recipe = {"model.layers.*": GPTQ(4, 16, ZeroPoint.INTEGER)}
    ours = apply_in_sequence(Decoder.from_transformers(make("llama")), recipe, batches)
    theirs = apply_in_sequence(make("llama"), recipe, batches)
    ids = ids_of(2, 20, seed=9)
    with torch.no_grad():
        exact, one, other = (model(ids).logits for model in (make("llama"), ours, theirs))
    # A sum in another order may tip a rounding here or there; more than that would show.
    assert (one - other).norm() < 0.1 * (other - exact).norm()


def test_a_budget_that_includes_the_cache_can_be_planned():
    model = make("llama")
    ours, theirs = (
        cache_options(m, 128, ids_of(2, 64), None) for m in (Decoder.from_transformers(model), model)
    )
    assert [option.nbytes for option in ours] == [option.nbytes for option in theirs]
    assert [o.loss for o in ours] == pytest.approx([o.loss for o in theirs], rel=1e-2, abs=1e-6)


def test_no_cache_is_asked_of_what_has_none():
    model = make("llama")
    assert without_cache(model) == {"use_cache": False}
    assert without_cache(Decoder.from_transformers(model)) == {}
    assert without_cache(lambda ids: ids) == {}


def test_a_decoder_without_a_transformers_config_says_so(tmp_path):
    made = Decoder(Decoder.from_transformers(make("llama")).cfg)
    assert made.cfg.vocab_size == VOCAB
    with pytest.raises(TypeError, match="Decoder has no transformers config to save"):
        shoestring.save(made, None, tmp_path / "m")
