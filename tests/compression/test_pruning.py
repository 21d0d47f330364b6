"""What each recipe prunes, beside a plain statement of its rule; saved models come back bit for bit."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shoestring.compression import (
    MagnitudePrune,
    Recipe,
    SparseGPT,
    StoreSparse,
    Wanda,
    apply,
    capture,
    global_magnitude,
    load,
    prune_in_place,
    save,
)
from shoestring.compression.calibration import Calibration, Moments
from shoestring.compression.module_formats import describe_modules, install_modules
from shoestring.errors import BadModelFile
from shoestring.generation.decode import generate
from shoestring.layers.sparse_linear import SparseLinear
from shoestring.models.decoder import Decoder
from shoestring.numbers.bitmap_matrix import bitmap_bytes
from shoestring.numbers.sparse_values import ValueKind

from .models import batches, gpt2, llama

LAYERS = "model.layers.*"
RECIPES = [MagnitudePrune(0.6), Wanda(0.6), SparseGPT(0.6, block_columns=24), Wanda(0.5, ValueKind.INT8)]


def drawn(rows: int, cols: int, seed: int) -> tuple[torch.Tensor, Calibration]:
    """A weight and the statistics of correlated inputs of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    mix = torch.randn(cols, cols, generator=generator)
    x = torch.randn(4 * cols, cols, generator=generator) @ mix * torch.rand(cols, generator=generator)
    moments = Moments(cols)
    moments.add(x)
    return weight, Calibration({"w": moments})


@given(rows=st.integers(1, 9), cols=st.integers(1, 40), sparsity=st.floats(0, 1), seed=st.integers(0, 99))
def test_magnitude_keeps_the_largest(rows, cols, sparsity, seed):
    weight, _ = drawn(rows, cols, seed)
    recipe = MagnitudePrune(sparsity)
    _, kept = recipe.prune("w", weight, None)
    assert int(kept.sum()) == recipe.kept_count(rows, cols) == rows * cols - round(sparsity * rows * cols)
    if 0 < kept.sum() < kept.numel():
        assert weight.abs()[kept].min() >= weight.abs()[~kept].max()


@given(rows=st.integers(1, 9), cols=st.integers(1, 40), sparsity=st.floats(0, 1), seed=st.integers(0, 99))
def test_wanda_keeps_in_each_row_what_moves_its_output_most(rows, cols, sparsity, seed):
    weight, calibration = drawn(rows, cols, seed)
    recipe = Wanda(sparsity)
    same, kept = recipe.prune("w", weight, calibration)
    assert torch.equal(same, weight)
    assert (kept.sum(1) == cols - round(sparsity * cols)).all()
    assert int(kept.sum()) == recipe.kept_count(rows, cols)
    norms = calibration.second_moment("w").diagonal().sqrt()
    for row in range(rows):
        score = [abs(float(w)) * float(n) for w, n in zip(weight[row], norms, strict=True)]
        going = sorted(range(cols), key=score.__getitem__)[: round(sparsity * cols)]
        worst_kept = min((score[j] for j in range(cols) if kept[row, j]), default=float("inf"))
        assert all(score[j] <= worst_kept * (1 + 1e-6) for j in going)


def naive_compensated(weight, moment, kept, damping):
    """Weights that go to zero one column after the other as optimal brain surgeon does, in float64."""
    work, h = weight.double().clone(), moment.double()
    inverse = torch.linalg.inv(h + torch.eye(len(h), dtype=h.dtype) * damping * h.diagonal().mean())
    for q in range(weight.shape[1]):
        error = torch.where(kept[:, q], 0.0, work[:, q])
        work -= torch.outer(error / inverse[q, q], inverse[q])
        inverse = inverse - torch.outer(inverse[:, q], inverse[q]) / inverse[q, q]
    return torch.where(kept, work, 0)


@given(
    rows=st.integers(1, 6),
    cols=st.integers(2, 50),
    block=st.sampled_from([7, 16, 128]),
    seed=st.integers(0, 50),
)
def test_sparsegpt_moves_the_rest_as_optimal_brain_surgeon_does(rows, cols, block, seed):
    weight, calibration = drawn(rows, cols, seed)
    recipe = SparseGPT(0.5, block_columns=block)
    found, kept = recipe.prune("w", weight, calibration)
    assert int(kept.sum()) == recipe.kept_count(rows, cols)
    expected = naive_compensated(weight, calibration.second_moment("w"), kept, recipe.damping)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)
    assert not found[~kept].any()


def test_sparsegpt_chooses_by_what_a_weight_costs_when_the_rest_makes_up_for_it():
    weight, calibration = drawn(12, 30, 0)
    _, kept = SparseGPT(0.4).prune("w", weight, calibration)
    h = calibration.second_moment("w").double()
    h = h + torch.eye(30, dtype=h.dtype) * 0.01 * h.diagonal().mean()
    # eliminating the columns in order leaves [H⁻¹]ⱼⱼ of the columns still to come: one over the pivot
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    score = weight.double().square() / upper.diagonal().square()
    assert score[kept].min() >= score[~kept].max() * (1 - 1e-5)


def test_on_correlated_inputs_compensation_loses_less_than_choice_and_choice_less_than_size():
    losses = {}
    weight, calibration = drawn(40, 96, 3)
    moment = calibration.second_moment("w")
    for recipe in (MagnitudePrune(0.5), Wanda(0.5), SparseGPT(0.5)):
        found, kept = recipe.prune("w", weight, calibration)
        change = torch.where(kept, found, 0) - weight
        losses[type(recipe).__name__] = ((change @ moment) * change).sum().item()
    assert losses["SparseGPT"] < losses["Wanda"] < losses["MagnitudePrune"]


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_stored_and_dense_models_agree_bytes_are_as_predicted_and_reload_is_exact(recipe, tmp_path):
    model, (ids, *_) = llama(), batches()
    calibration = capture(model, batches())
    masked = copy.deepcopy(model)
    masks = prune_in_place(masked, recipe, calibration=calibration)
    predicted = {name: recipe.bytes_after(model.get_submodule(name)) for name in masks}
    apply(model, {LAYERS: recipe}, calibration=calibration)
    assert {name: model.get_submodule(name).nbytes for name in masks} == predicted
    for name, kept in masks.items():
        layer = model.get_submodule(name)
        assert torch.equal(layer.matrix.kept(), kept)
        assert torch.equal(layer.weight, masked.get_submodule(name).weight)
    with torch.no_grad():
        logits = model(ids).logits
        torch.testing.assert_close(logits, masked(ids).logits, rtol=1e-5, atol=1e-5)
        save(model, None, tmp_path / "saved", recipe={LAYERS: recipe})
        again = load(tmp_path / "saved")
        assert torch.equal(again(ids).logits, logits)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_greedy_text_of_a_sparse_decoder_is_that_of_the_masked_one():
    model = llama()
    calibration = capture(model, batches())
    prune_in_place(model, Wanda(0.7), calibration=calibration)
    masked = Decoder.from_transformers(model)
    sparse = apply(copy.deepcopy(masked), {LAYERS: StoreSparse()})
    assert sum(isinstance(m, SparseLinear) for m in sparse.modules()) == 14
    for prompt in ([1, 5, 9], list(range(40))):
        texts = [generate(m, prompt, max_new_tokens=40, stop_tokens=[]).tokens for m in (masked, sparse)]
        assert texts[0] == texts[1]


def test_global_magnitude_takes_the_smallest_of_all_layers_together():
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(10)
    recipes = global_magnitude(model, 0.5)
    masks = prune_in_place(model, recipes)
    everything = llama()
    with torch.no_grad():
        everything.model.layers[0].mlp.up_proj.weight.mul_(10)
    sizes = {name: everything.get_submodule(name).weight.detach().abs() for name in masks}
    kept = torch.cat([sizes[name][mask] for name, mask in masks.items()])
    gone = torch.cat([sizes[name][~mask] for name, mask in masks.items()])
    assert abs(len(gone) - len(kept)) <= 1
    assert kept.min() >= gone.max()
    shares = {name: 1 - mask.double().mean().item() for name, mask in masks.items()}
    assert shares["model.layers.0.mlp.up_proj"] < 0.2 < 0.5 < shares["model.layers.1.mlp.up_proj"]
    assert "lm_head" not in masks


def test_sparsity_differs_by_layer_where_the_mapping_says_so():
    masks = prune_in_place(llama(), {"*.mlp.*": MagnitudePrune(0.75), "*.o_proj": MagnitudePrune(0.25)})
    assert {round(1 - m.double().mean().item(), 3) for n, m in masks.items() if ".mlp." in n} == {0.75}
    assert {round(1 - m.double().mean().item(), 3) for n, m in masks.items() if "o_proj" in n} == {0.25}
    assert not any("q_proj" in name for name in masks)


def test_storing_what_is_not_zero_counts_it():
    model = llama()
    prune_in_place(model, MagnitudePrune(0.8))
    module = model.model.layers[0].mlp.gate_proj
    assert StoreSparse().bytes_after(module) == bitmap_bytes(64, 32, int((module.weight != 0).sum()))


def test_layers_of_gpt2_are_transposed():
    model = gpt2()
    masked = copy.deepcopy(model)
    prune_in_place(masked, MagnitudePrune(0.5))
    apply(model, {"transformer.h.*": MagnitudePrune(0.5)})
    with torch.no_grad():
        ids = batches()[0]
        torch.testing.assert_close(model(ids).logits, masked(ids).logits, rtol=1e-4, atol=1e-4)


def test_recipes_survive_json():
    for recipe in (*RECIPES, StoreSparse(values=ValueKind.FLOAT16)):
        assert Recipe.from_json(recipe.to_json()) == recipe


def test_what_cannot_be_pruned():
    with pytest.raises(ValueError, match="sparsity=1.5 must lie between 0 and 1"):
        Wanda(1.5)
    with pytest.raises(ValueError, match="block_columns=0"):
        SparseGPT(block_columns=0)
    with pytest.raises(ValueError, match="sparsity=-1"):
        global_magnitude(llama(), -1)
    with pytest.raises(ValueError, match="embed_tokens' is an embedding; pruning is for linear layers"):
        apply(llama(tied=False), MagnitudePrune())
    with pytest.raises(ValueError, match="no calibration inputs reached"):
        apply(llama(), {LAYERS: Wanda()})
    with pytest.raises(ValueError, match="'q' has no calibration, which Wanda needs"):
        Wanda().rewrite("q", nn.Linear(4, 4), None)
    with pytest.raises(ValueError, match="holds NaN"):
        MagnitudePrune().rewrite("q", _with_nan(), None)


def _with_nan() -> nn.Linear:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.fill_(float("nan"))
    return layer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "sparse weights of format 2; this version reads format 1"),
        ({"values": "int3"}, "int3"),
    ],
)
def test_another_version_of_the_stored_form_is_refused(change, message):
    model = apply(llama(), {LAYERS: MagnitudePrune(0.5)})
    document = describe_modules(model)
    document["model.layers.0.mlp.up_proj"] |= change
    with pytest.raises(BadModelFile, match=message):
        install_modules(llama(), document, dtype=torch.float32)
