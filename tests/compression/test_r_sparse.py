"""The recipe: budgets, factors, what it does to a model, what it refuses, and what is read back."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.compression.models import batches, gpt2, llama
from tests.models.families import ids_of, make
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import shoestring
from shoestring.compression import (
    RoundToNearest,
    RowStore,
    RSparse,
    apply,
    block_linears,
    capture_scores,
    r_sparse_recipes,
    stored_bytes,
)
from shoestring.compression import plan as plan_of
from shoestring.compression.r_sparse import Budget
from shoestring.compression.recipe import Recipe
from shoestring.compression.singular_factors import singular_factors
from shoestring.errors import BadModelFile
from shoestring.layers import RowSparseLinear, sparse_tail
from shoestring.layers.row_sparse_linear import rows_read
from shoestring.models.decoder import Decoder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Kernels stay where they are; factors go to a folder of the test."""
    folder = tmp_path_factory.mktemp("cache")
    from shoestring.compression import singular_factors as module

    def cache_folder(*parts):
        (folder / parts[0]).mkdir(exist_ok=True)
        return folder / parts[0]

    monkeypatch.setattr(module, "cache_folder", cache_folder)
    return folder


shares = st.floats(0, 1)


@given(
    outputs=st.integers(1, 4000),
    inputs=st.integers(1, 4000),
    sparsity=st.floats(0, 0.99),
    alpha=shares,
)
def test_the_budget_is_kept(outputs, inputs, sparsity, alpha):
    budget = Budget.of(outputs, inputs, sparsity, alpha)
    spent = budget.channels * outputs + budget.rank * (inputs + outputs)
    assert spent <= (1 - sparsity) * inputs * outputs + outputs + inputs + outputs
    assert budget.channels >= 1
    assert (budget.rank == 0) == (alpha == 1.0)
    if alpha < 1.0 and budget.rank > 1 and budget.channels > 1:  # neither is raised to its least value
        assert spent >= (1 - sparsity) * inputs * outputs - outputs - inputs - outputs - 1


def test_grouped_query_layers_count_their_own_outputs():
    """k and v of SmolLM2: as 576 outputs they would be given thrice the rank that their budget pays for."""
    assert Budget.of(192, 576, 0.5, 0.5) == Budget(144, int((576 * 192 * 0.5 - 144 * 192) / 768))


@given(rows=st.integers(1, 40), cols=st.integers(1, 40), data=st.data())
def test_factors_are_the_best_of_their_rank(rows, cols, data):
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows))
    down, up = singular_factors(weight)
    assert down.shape[1] == up.shape[0] == max(rows * cols // (rows + cols), 1)
    rank = data.draw(st.integers(1, len(up)))
    lost = (weight.T - down[:, :rank] @ up[:rank]).double().square().sum()
    tail = torch.linalg.svdvals(weight.double())[rank:].square().sum()
    torch.testing.assert_close(lost, tail, rtol=1e-4, atol=1e-6 * rows * cols)


def test_factors_are_worked_out_once(monkeypatch, own_cache):
    weight = torch.randn(12, 9)
    first = singular_factors(weight)
    monkeypatch.setattr(torch.linalg, "svd", lambda *_, **__: pytest.fail("worked out again"))
    again = singular_factors(weight.clone())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    monkeypatch.undo()
    monkeypatch.setattr("shoestring.compression.singular_factors.cache_folder", lambda *_: own_cache)
    (own_cache / "singular_factors").mkdir(exist_ok=True)
    for file in own_cache.rglob("*.safetensors"):
        file.write_bytes(b"cut")
        file.rename(own_cache / file.name)
    repaired = singular_factors(weight)
    assert all(torch.equal(a, b) for a, b in zip(first, repaired, strict=True))


def calibrated(model, sparsity=0.5, alphas=1.0, store=RowStore.AS_IS):
    ids = batches(8)
    scores = capture_scores(model, ids, block_linears(model))
    return apply(model, r_sparse_recipes(model, sparsity, alphas, store), calibration=scores)


@pytest.mark.parametrize("make_model", [llama, gpt2])
@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("store", list(RowStore))
def test_bytes_are_as_announced(make_model, alpha, store):
    model = make_model()
    scores = capture_scores(model, batches(8), block_linears(model))
    recipes = r_sparse_recipes(model, 0.4, alpha, store)
    before = stored_bytes(model)
    change = sum(
        r.bytes_after(s.module) - sum(p.nbytes for p in s.module.parameters())
        for s, r in plan_of(model, recipes)
    )
    apply(model, recipes, calibration=scores)
    assert stored_bytes(model) == before + change
    layers = [m for m in model.modules() if isinstance(m, RowSparseLinear)]
    assert len(layers) == len(recipes) == (14 if make_model is llama else 8)
    bias = sum(layer.bias.nbytes for layer in layers if layer.bias is not None)
    assert (
        sum(layer.nbytes for layer in layers)
        == sum(
            r.matrix_bytes(m.out_features, m.in_features, 4)
            for r, m in zip(recipes.values(), layers, strict=True)
        )
        + bias
    )


@pytest.mark.parametrize("make_model", [llama, gpt2])
def test_a_transformers_model_decodes_sparsely_as_it_is(make_model):
    """Prompt dense, then a token at a time: the same as masking the tail of one pass."""
    exact, model = make_model(), calibrated(make_model(), 0.5)
    ids = batches()[0][:1]
    with torch.no_grad():
        prompt = model(ids[:, :16], use_cache=True)
        torch.testing.assert_close(prompt.logits, exact(ids[:, :16]).logits, rtol=1e-4, atol=1e-5)
        cache, logits = prompt.past_key_values, []
        for i in range(16, 24):
            logits.append(model(ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits)
        with sparse_tail(model, 8 / 24):
            masked = model(ids).logits[:, 16:]
        torch.testing.assert_close(torch.cat(logits, 1), masked, rtol=1e-3, atol=1e-4)
        assert (masked - exact(ids).logits[:, 16:]).abs().max() > 1e-3


def test_nothing_left_out_changes_nothing():
    exact, model = llama(), calibrated(llama(), 0.0)
    ids = batches()[0]
    with torch.no_grad(), sparse_tail(model, 1.0):
        torch.testing.assert_close(model(ids).logits, exact(ids).logits, rtol=1e-4, atol=1e-5)
    assert set(rows_read(model).values()) == {1.0}


@pytest.mark.parametrize("alpha", [1.0, 0.6, 0.25])
def test_the_share_of_rows_read_is_the_one_asked_for(alpha):
    """Inputs dense (one sparse layer at a time), text unseen."""
    exact = llama()
    scores = capture_scores(exact, batches(12), block_linears(exact))
    unseen = torch.randint(0, 96, (16, 24), generator=torch.Generator().manual_seed(99))
    for name, recipe in r_sparse_recipes(exact, 0.4, alpha).items():
        model = apply(llama(), {name: recipe}, calibration=scores)
        with torch.no_grad(), sparse_tail(model, 20 / 24):
            model(unseen)
        assert rows_read(model)[name] == pytest.approx(0.6 * alpha, abs=0.05), name


def mixed(model):
    """Columns alone, both, low rank alone, dense, by turns, and one layer left as it was."""
    names = block_linears(model)
    recipes = {
        name: RSparse(0.4, (1.0, 0.5, 0.0)[i % 3]) if i % 4 else RSparse(0.0)
        for i, name in enumerate(names)
        if i != 5
    }
    return apply(model, recipes, calibration=capture_scores(model, [ids_of(4, 80)], names))


@pytest.mark.parametrize("family", ["llama", "llama, biases", "qwen 3", "gemma 3"])
@pytest.mark.parametrize("store", [torch.float32, torch.bfloat16])
def test_saved_and_read_back_bit_for_bit(family, store, tmp_path):
    model = mixed(make(family))
    for module in model.modules():
        if isinstance(module, RowSparseLinear) and store != torch.float32:
            for name in ("rows", "down", "up"):
                old = getattr(module, name)
                setattr(module, name, None if old is None else old.to(store))
    shoestring.save(model, None, tmp_path / "m")
    again = shoestring.load(tmp_path / "m")
    auto = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert {name: type(module) for name, module in again.named_modules()} == kinds
    for name, tensor in model.state_dict().items():
        assert again.state_dict()[name].dtype == tensor.dtype, name
        assert torch.equal(again.state_dict()[name], tensor), name
    ids = ids_of(1, 20)
    with torch.no_grad(), sparse_tail(model, 0.5), sparse_tail(again, 0.5), sparse_tail(auto, 0.5):
        expected = model(ids).logits
        assert torch.equal(again(ids).logits, expected)
        assert torch.equal(auto(ids).logits, expected)


def test_a_decoder_takes_the_layers_over_and_saves_them(tmp_path):
    theirs = make("llama")
    decoder = mixed(Decoder.from_transformers(theirs))
    shoestring.save(decoder, None, tmp_path / "m")
    again = Decoder.from_transformers(shoestring.load(tmp_path / "m"))
    ids = ids_of(1, 20)
    with torch.no_grad(), sparse_tail(decoder, 0.5), sparse_tail(again, 0.5):
        assert torch.equal(again(ids).logits, decoder(ids).logits)


def test_a_damaged_format_is_named(tmp_path):
    model = mixed(make("llama"))
    shoestring.save(model, None, tmp_path / "m")
    from shoestring.compression.module_formats import describe_modules, stored_tensors

    document = json.loads(json.dumps(describe_modules(model)))
    name = next(n for n, entry in document.items() if entry["rank"])
    assert stored_tensors(document)[f"{name}.up"][0] == tuple(model.get_submodule(name).up.shape)
    document[name]["store"] = "int3"
    with pytest.raises(BadModelFile, match=f"format of {name!r} is not valid"):
        stored_tensors(document)


def test_a_recipe_goes_through_json():
    recipe = RSparse(0.4, 0.75, RowStore.BFLOAT16)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((1.0, 1.0), r"sparsity=1\.0 is no share of reads to save; use one in \[0, 1\)"),
        ((-0.1, 1.0), r"sparsity=-0\.1 is no share"),
        ((float("nan"), 1.0), "sparsity=nan"),
        ((0.5, 1.01), r"alpha=1\.01 is no share"),
        ((0.5, -0.5), r"alpha=-0\.5 is no share"),
    ],
)
def test_shares_that_are_none(fields, message):
    with pytest.raises(ValueError, match=message):
        RSparse(*fields)


def test_a_wrong_number_of_alphas_names_both():
    with pytest.raises(ValueError, match="13 alphas for 14 linear layers"):
        r_sparse_recipes(llama(), 0.5, [1.0] * 13)
    assert [r.alpha for r in r_sparse_recipes(llama(), 0.5, [0.5] * 14).values()] == [0.5] * 14


def test_what_is_no_linear_layer_of_a_block():
    class Convolutional(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Conv1d(3, 3, 1)])

    with pytest.raises(TypeError, match=r"'blocks.0' is a Conv1d; R-Sparse takes nn.Linear"):
        r_sparse_recipes(Convolutional())
    with pytest.raises(TypeError, match="has no blocks of linear layers; R-Sparse takes"):
        block_linears(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(TypeError, match="'c' is a Conv2d; R-Sparse takes nn.Linear"):
        RSparse().rewrite("c", nn.Conv2d(1, 1, 1), None)
    model = llama()
    scores = capture_scores(model, batches(8), ["lm_head", *block_linears(model)])
    with pytest.raises(ValueError, match="'model.embed_tokens' is an embedding; R-Sparse takes"):
        apply(model, {"lm_head": RSparse()}, calibration=scores)
    assert isinstance(model.lm_head, nn.Linear)
    assert "lm_head" not in r_sparse_recipes(model)


def test_packed_weights_are_refused():
    model = apply(llama(), {"*up_proj": RoundToNearest(4, 16)})
    with pytest.raises(NotImplementedError, match=r"'model.layers.0.mlp.up_proj' holds packed .* dequantise"):
        r_sparse_recipes(model)
    with pytest.raises(NotImplementedError, match="quantise groups of rows"):
        RSparse().rewrite("x", model.model.layers[0].mlp.up_proj, None)


def test_scores_are_needed():
    model = llama()
    with pytest.raises(ValueError, match="no calibration inputs reached"):
        apply(model, r_sparse_recipes(model))
    with pytest.raises(ValueError, match="calibrate with `capture_scores`"):
        RSparse().rewrite("x", nn.Linear(4, 4), shoestring.compression.capture(model, batches(1)))


def test_training_is_refused():
    model = calibrated(llama()).train()
    with pytest.raises(RuntimeError, match="R-Sparse is inference only"):
        model(batches()[0])


def test_the_two_ways_of_one_layer_add_up():
    """Both paths at work: columns above the threshold in full, the others through the thin matrices."""
    model = calibrated(llama(), 0.3, 0.5)
    layer = model.model.layers[1].mlp.down_proj
    x = torch.randn(1, 1, 64) * 1.5 * layer.threshold / layer.weight.norm(dim=0)
    kept = x.abs() * layer.weight.norm(dim=0) > layer.threshold
    expected = F.linear(x * kept, layer.weight) + (x * ~kept) @ layer.down @ layer.up
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert 0 < kept.sum() < 64
