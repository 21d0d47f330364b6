"""A budget is met, kept, and spent where it helps."""

import copy
import importlib
from dataclasses import replace

import pytest
import torch
from tests.compression.models import llama

from shoestring.compression import file_size, slots, stored_bytes
from shoestring.compression.fit import divide_only, fit
from shoestring.compression.fitted import FitSettings
from shoestring.compression.group_quantize import GPTQ, RoundToNearest
from shoestring.compression.profile import profile
from shoestring.compression.ranking_controls import ranking_controls
from shoestring.compression.refinement import block_of, corrections, marginal_losses
from shoestring.compression.saved_folder import load, save
from shoestring.compression.scale_tuning import ScaleTuning, packed_weights, tune_scales
from shoestring.numbers.grouped_affine import ZeroPoint
from shoestring.yardstick.language_quality import divergence

MENU = [GPTQ(bits, 16, ZeroPoint.INTEGER, 8) for bits in (2, 3, 4, 8)] + [
    RoundToNearest(bits, 16, ZeroPoint.INTEGER, 8) for bits in (2, 8)
]
profiling = importlib.import_module("shoestring.compression.profile")

SETTINGS = FitSettings(window=24, gradient_windows=4, tuning=ScaleTuning(0))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model():
    """Random weights, scaled up so that predictions are far from uniform."""
    made = llama(tied=True)
    for parameter in made.parameters():
        parameter.data *= 3
    return made


def windows(count=10, seed=1):
    return torch.randint(0, 96, (count, 24), generator=torch.Generator().manual_seed(seed))


def smallest_and_largest(model):
    plans = [
        divide_only(model, windows(), budget, settings=SETTINGS, menu=MENU).file_bytes
        for budget in (1, 10**9)
    ]
    return plans[0], plans[1]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.71, 1.0])
def test_the_file_never_exceeds_the_budget_and_uses_most_of_it(model, tmp_path, share):
    low, high = smallest_and_largest(model)
    budget = round(low + share * (high - low))
    fitted = fit(model, windows(), budget, settings=SETTINGS, menu=MENU)
    assert fitted.met
    folder = save(fitted.model, None, tmp_path / "out", recipe=dict(fitted.recipes))
    on_disk = (folder / "model.safetensors").stat().st_size
    assert on_disk == fitted.file_bytes <= budget
    ids = windows(2, seed=5)
    assert torch.equal(load(folder)(ids).logits, fitted.model(ids).logits)


def test_more_budget_costs_less_quality(model):
    low, high = smallest_and_largest(model)
    losses = []
    for share in (0.0, 0.4, 1.0):
        fitted = fit(model, windows(), round(low + share * (high - low)), settings=SETTINGS, menu=MENU)
        losses.append(divergence(fitted.model, model, windows(20, seed=9)).kld)
    assert losses[0] > 1.5 * losses[1] > 3 * losses[2]


def test_a_budget_out_of_reach_gives_the_smallest_model(model):
    low, _ = smallest_and_largest(model)
    fitted = fit(model, windows(), 10_000, settings=SETTINGS, menu=MENU)
    assert not fitted.met
    assert 10_000 < fitted.file_bytes <= low
    assert {recipe.bits for recipe in fitted.recipes.values()} == {2}


def test_the_original_is_left_alone_and_seeds_decide(model):
    before = copy.deepcopy(model.state_dict())
    settings = FitSettings(window=24, gradient_windows=4, tuning=ScaleTuning(6))
    low, high = smallest_and_largest(model)
    first, second = (fit(model, windows(), (low + high) // 2, settings=settings, menu=MENU) for _ in range(2))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert first.recipes == second.recipes
    ids = windows(1, seed=3)
    assert torch.equal(first.model(ids).logits, second.model(ids).logits)


def test_the_second_budget_needs_no_second_profile(model, monkeypatch):
    low, high = smallest_and_largest(model)

    def fail(*args, **kwargs):
        raise AssertionError("profiled again")

    monkeypatch.setattr(profiling, "measure_sensitivity", fail)
    monkeypatch.setattr(profiling, "predicted_loss", fail)
    assert fit(model, windows(), (low + 2 * high) // 3, settings=SETTINGS, menu=MENU).met


def test_a_profile_goes_on_where_it_was_cut(model, tmp_path, monkeypatch):
    arguments = {"gradient_windows": 4, "seed": 0}
    whole = profile(model, windows(), MENU, folder=tmp_path / "whole", **arguments)
    seen = []

    def interrupt(what, done, total):
        if what != "statistics" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(model, windows(), MENU, folder=tmp_path / "cut", progress=interrupt, **arguments)
    original = profiling.predicted_loss
    monkeypatch.setattr(
        profiling,
        "predicted_loss",
        lambda slot, recipe, s: seen.append(slot.name) or original(slot, recipe, s),
    )
    resumed = profile(model, windows(), MENU, folder=tmp_path / "cut", **arguments)
    assert set(seen) == {slot.name for slot in slots(model)[5:]}
    assert resumed.options == whole.options


def test_another_text_or_model_is_another_profile(model, tmp_path):
    arguments = {"menu": MENU, "gradient_windows": 4, "seed": 0}
    folders = {
        profile(model, windows(), **arguments).folder,
        profile(model, windows(seed=2), **arguments).folder,
        profile(model, windows(), **{**arguments, "seed": 1}).folder,
    }
    next(model.parameters()).data[0, 0] += 1
    folders.add(profile(model, windows(), **arguments).folder)
    assert len(folders) == 4


def test_size_is_known_before_writing(model, tmp_path):
    path = save(model, None, tmp_path / "plain") / "model.safetensors"
    assert file_size.file_bytes(model) == path.stat().st_size
    assert stored_bytes(model) < path.stat().st_size


def test_context_counts_the_cache(model):
    low, high = smallest_and_largest(model)
    budget = (low + high) // 2
    with_cache = fit(model, windows(), budget + 300_000, context=1000, settings=SETTINGS, menu=MENU)
    assert with_cache.cache is not None
    assert with_cache.total_bytes == with_cache.file_bytes + with_cache.cache.nbytes <= budget + 300_000
    with pytest.raises(ValueError, match="a context of 4000 tokens is outside 1 to 2048"):
        fit(model, windows(), budget, context=4000, settings=SETTINGS, menu=MENU)


def test_marginal_losses_add_the_original_weights_back(model):
    fitted = fit(model, windows(), 10_000, settings=SETTINGS, menu=MENU)
    before = [id(m) for m in fitted.model.modules()]
    falls = marginal_losses(fitted.model, model, windows(4, seed=7))
    assert [id(m) for m in fitted.model.modules()] == before
    assert set(falls) == {"model.layers.0", "model.layers.1", "lm_head"}
    for block, names in (("lm_head", ["lm_head", "model.embed_tokens"]),):
        mixed = copy.deepcopy(fitted.model)
        for name in names:
            path, _, leaf = name.rpartition(".")
            setattr(mixed.get_submodule(path), leaf, model.get_submodule(name))
        everything = divergence(fitted.model, model, windows(4, seed=7)).kld
        # The marginal counts all 24 positions of a window, `divergence` the 23 that predict a known token.
        assert falls[block] == pytest.approx(
            everything - divergence(mixed, model, windows(4, seed=7)).kld, rel=0.15
        )


def test_corrections_keep_to_what_was_measured(model):
    fitted = fit(model, windows(), 10_000, settings=SETTINGS, menu=MENU)
    predicted = {}
    for name, option in fitted.choice.options.items():
        predicted[block_of(name)] = predicted.get(block_of(name), 0) + option.loss
    measured = {block: loss * (3 if block == "lm_head" else 1.5) for block, loss in predicted.items()}
    factors = corrections(fitted.choice.options, measured)
    assert factors["lm_head"] == pytest.approx(3)
    assert factors["model.layers.0.self_attn.q_proj"] == pytest.approx(1.5)
    wild = corrections(fitted.choice.options, {**measured, "lm_head": 1e9})
    assert wild["lm_head"] == pytest.approx(4 * 1.5), "no more than four times the median"


def test_tuning_scales_lowers_the_divergence_on_other_text_and_adds_no_byte(model):
    fitted = fit(model, windows(), 10_000, settings=SETTINGS, menu=MENU)
    before, size = divergence(fitted.model, model, windows(30, seed=8)).kld, stored_bytes(fitted.model)
    codes = [weight.codes.clone() for weight in packed_weights(fitted.model)]
    tune_scales(
        fitted.model,
        model,
        windows(40, seed=4),
        ScaleTuning(60, 1e-2),
        generator=torch.Generator().manual_seed(0),
    )
    assert divergence(fitted.model, model, windows(30, seed=8)).kld < 0.9 * before
    assert stored_bytes(fitted.model) == size
    after = packed_weights(fitted.model)
    assert all(torch.equal(a, w.codes) for a, w in zip(codes, after, strict=True))
    assert fitted.model.get_input_embeddings().packed is fitted.model.get_output_embeddings().packed


def test_tuning_that_does_not_help_is_undone(model):
    low, high = smallest_and_largest(model)
    wild = replace(SETTINGS, tuning=ScaleTuning(2, learning_rate=5.0))
    untuned, kept = (
        fit(model, windows(), (low + high) // 2, settings=settings, menu=MENU)
        for settings in (SETTINGS, wild)
    )
    assert kept.tuned == untuned.tuned
    for name, tensor in untuned.model.state_dict().items():
        assert torch.equal(tensor, kept.model.state_dict()[name]), name


def test_sensitivity_is_shown_beside_random_and_inverted(model):
    known = fit(model, windows(), 10_000, settings=SETTINGS, menu=MENU).profile
    result = ranking_controls(
        model,
        known,
        windows(10, seed=6),
        narrow=lambda o: o.recipe.bits == 2,
        wide=lambda o: o.recipe.bits == 8,
        seed=0,
    )
    assert result.by_sensitivity < result.inverted
    again = ranking_controls(model, known, windows(1), narrow=bool, wide=bool, seed=0)
    assert again == result, "measured once"


def test_bad_input(model):
    with pytest.raises(ValueError, match="a budget of 0 bytes holds nothing"):
        fit(model, windows(), 0, settings=SETTINGS)
    with pytest.raises(ValueError, match="gives 2 windows of 24 tokens, 5 are needed"):
        fit(model, windows(2), 10**6, settings=SETTINGS)
    with pytest.raises(ValueError, match="holds no packed weight"):
        tune_scales(model, model, windows(), ScaleTuning(), generator=torch.Generator())
    with pytest.raises(ValueError, match="learning_rate above 0"):
        ScaleTuning(learning_rate=0.0)
