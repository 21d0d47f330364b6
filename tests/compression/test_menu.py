"""What a menu is made of, and that its recipes are chosen where they are the best."""

import pytest
import torch
from tests.compression.models import llama
from transformers import LlamaConfig, LlamaForCausalLM

from shoestring.compression import slots
from shoestring.compression.dual_binarize import DualBinarize
from shoestring.compression.fit import fit
from shoestring.compression.fit_target import SHOESTRING, shoestring_target
from shoestring.compression.fitted import FitSettings
from shoestring.compression.menu import FAMILIES, default_menu, family_names, menu_of, options_for
from shoestring.compression.profile import profile
from shoestring.compression.pruning import PruneRecipe, Wanda
from shoestring.compression.saved_folder import load, save
from shoestring.compression.scale_tuning import ScaleTuning
from shoestring.compression.solver import solve

SETTINGS = FitSettings(window=24, gradient_windows=4, tuning=ScaleTuning(0), rounds=0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))


def windows(count=10):
    return torch.randint(0, 96, (count, 24), generator=torch.Generator().manual_seed(1))


def test_names_of_families():
    assert family_names("default") == ("default",)
    assert family_names(" sparse ,default") == ("default", "sparse")
    assert family_names("all") == tuple(FAMILIES)
    assert menu_of(("default",)) == default_menu()
    assert shoestring_target(("default",)) is SHOESTRING
    wider = shoestring_target(("default", "sparse"))
    assert wider.name == "shoestring with default, sparse"
    assert len(wider.menu()) > len(default_menu())
    for bad in ("", "sparce", "default,,sparse"):
        with pytest.raises(ValueError, match="is no family of recipes; use default, sparse, dual-bin"):
            family_names(bad)


def test_a_recipe_that_no_budget_can_choose_says_why():
    with pytest.raises(ValueError, match="'r-sparse' is no recipe of a budget.*with r_sparse_recipes"):
        family_names("default,r-sparse")


def test_a_matrix_of_mostly_zeros_is_stored_sparse(tmp_path):
    """Nine of ten weights are zero, the others of any size: codes of a grid cannot say that in 3 bits."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    layer, name = model.model.layers[0].mlp.gate_proj, "model.layers.0.mlp.gate_proj"
    layer.weight.data = torch.randn(256, 128) * (torch.rand(256, 128) < 0.1)
    sparse = [r for r in menu_of(("sparse",)) if isinstance(r, Wanda) and r.sparsity in (0.5, 0.9)]
    menu = [*(r for r in default_menu() if r.bits in (2, 3, 8)), *sparse]
    known = profile(model, windows(), menu, gradient_windows=4, seed=0, folder=tmp_path / "profile")
    own, budget = known.options[name], 256 * 128 * 3 // 8
    chosen = solve({"w": own}, budget).options["w"]
    assert isinstance(chosen.recipe, PruneRecipe)
    by_grid = solve({"w": [o for o in own if not isinstance(o.recipe, PruneRecipe)]}, budget)
    assert chosen.loss < 0.5 * by_grid.loss
    usual = solve({"w": known.options["model.layers.0.mlp.up_proj"]}, budget).options["w"]
    assert not isinstance(usual.recipe, PruneRecipe), "a full matrix is better off with codes"

    room = 100_000
    few = [recipe for recipe in menu if getattr(recipe, "bits", 8) in (2, 8)]
    fitted = fit(model, windows(), room, settings=SETTINGS, menu=few)
    assert fitted.met
    assert isinstance(fitted.recipes[name], PruneRecipe)
    folder = save(fitted.model, None, tmp_path / "out", recipe=dict(fitted.recipes))
    assert (folder / "model.safetensors").stat().st_size == fitted.file_bytes <= room
    assert torch.equal(load(folder)(windows(1)).logits, fitted.model(windows(1)).logits)


def test_a_matrix_of_four_unequal_levels_is_stored_as_two_planes(tmp_path):
    """Levels −1, 0, 3 and 2 are no even grid of four; two planes hold them exactly."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(96, 64), torch.nn.Linear(64, 96, bias=False))
    levels = torch.tensor([-1.0, 0.0, 2.0, 3.0])
    model[1].weight.data = levels[torch.randint(0, 4, (96, 64))] * 0.25
    menu = menu_of(("default", "dual-binary"))
    known = profile(model, windows(20), menu, gradient_windows=4, seed=0, folder=tmp_path / "profile")
    own = known.options["1"]
    planes = [o for o in own if isinstance(o.recipe, DualBinarize)]
    chosen = solve({"w": own}, min(o.nbytes for o in planes)).options["w"]
    assert isinstance(chosen.recipe, DualBinarize)


def test_the_default_menu_is_what_it_was():
    menu = default_menu()
    assert {type(recipe).__name__ for recipe in menu} == {"GPTQ", "RoundToNearest"}
    model = llama()
    for slot in slots(model):
        wider = [r for r in options_for(slot, menu_of(tuple(FAMILIES))) if r in menu]
        assert wider == options_for(slot, menu), "other families take none of it away"
