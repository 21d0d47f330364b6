"""DualBinarize: each way of fitting is better in its own measure; stored, saved and loaded bit for bit."""

import pytest
import torch
from tests.compression.models import batches, byte_tokenizer, llama

from shoestring.compression import DualBinarize, RoundToNearest, apply, capture, load, save, stored_bytes
from shoestring.compression.block_reconstruction import Reconstruction, reconstruct, trace_block, update_error
from shoestring.compression.dual_binarize import Fit, compensate_planes
from shoestring.compression.error_compensation import output_loss, prepare_compensation
from shoestring.compression.module_formats import is_rewritten
from shoestring.compression.recipe import Needs, Recipe
from shoestring.compression.sequential import apply_in_sequence
from shoestring.layers import DualBinaryLinear
from shoestring.numbers.dual_binary import DualBinary
from shoestring.numbers.grouped_affine import ZeroPoint


def correlated(cols, count=600):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(cols, cols, generator=generator)
    x = torch.randn(count, cols, generator=generator) @ mix * torch.linspace(0.1, 2, cols)
    return x.T @ x / count


def test_inputs_and_compensation_lower_the_loss_of_the_outputs():
    moment = correlated(128)
    weight = torch.randn(24, 128, generator=torch.Generator().manual_seed(2))
    form = DualBinary(32)

    def loss(planes, levels):
        return output_loss(weight, form.decode(planes, levels), moment)

    plain, weighted = form.fit(weight), form.fit(weight, moment.diagonal())
    compensated = compensate_planes(form, weight, prepare_compensation(moment, torch.arange(128)))
    losses = [loss(form.assign(weight, levels), levels) for levels in (plain, weighted)]
    assert loss(*compensated) < losses[1] < losses[0]
    assert form.order(compensated[1]).all()


def test_compensation_without_correlation_is_plain_rounding():
    """With E[x xᵀ] = 1 no error moves to another column: every group is fitted and rounded as it is."""
    weight = torch.randn(7, 64, generator=torch.Generator().manual_seed(2))
    form = DualBinary(16)
    planes, levels = compensate_planes(form, weight, prepare_compensation(torch.eye(64), torch.arange(64)))
    assert torch.equal(levels, form.fit(weight))
    assert torch.equal(planes[0], form.assign(weight, levels)[0])
    assert torch.equal(planes[1], form.assign(weight, levels)[1])


@pytest.mark.parametrize("fit", list(Fit))
def test_a_model_is_rewritten_saved_and_loaded(fit, tmp_path):
    model = llama()
    recipe = DualBinarize(group_size=16, fit=fit)
    before = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    announced = sum(recipe.bytes_after(m) for m in before.values())
    kept = stored_bytes(model) - sum(m.weight.nbytes for m in before.values())
    if fit is Fit.WEIGHTS:
        assert recipe.needs is Needs.NOTHING
        apply(model, {"*proj": recipe})
    else:
        apply_in_sequence(model, {"*proj": recipe}, batches())
    changed = [m for m in model.modules() if isinstance(m, DualBinaryLinear)]
    assert len(changed) == len(before)
    assert all(map(is_rewritten, changed))
    assert stored_bytes(model) == kept + announced
    save(model, byte_tokenizer(), tmp_path / "small", recipe={"*proj": recipe})
    again = load(tmp_path / "small")
    ids = batches()[0]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_bad_input():
    model = llama()
    recipe = DualBinarize(64)
    with pytest.raises(ValueError, match="32 inputs, no whole groups of group_size=64"):
        recipe.rewrite("q_proj", model.model.layers[0].self_attn.q_proj, None)
    with pytest.raises(ValueError, match="'q_proj' has no calibration, which fit='compensated' needs"):
        DualBinarize(16).rewrite("q_proj", model.model.layers[0].self_attn.q_proj, None)
    assert "embedding" in DualBinarize(16).why_not("model.embed_tokens", model.model.embed_tokens)


def block_model():
    """A model whose block 1 is to be rewritten, and what went through it."""
    model = llama()
    return model, model.model.layers[1]


def make_latent(block, recipe, calibration):
    for name, module in list(block.named_modules()):
        if isinstance(module, torch.nn.Linear):
            parent, _, leaf = name.rpartition(".")
            setattr(
                block.get_submodule(parent),
                leaf,
                recipe.latent(f"model.layers.1.{name}", module, calibration),
            )


def test_reconstruction_brings_a_block_back_to_what_it_put_out():
    model, block = block_model()
    data = [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(6)]
    trace, held_out = trace_block(model, block, data[:4]), trace_block(model, block, data[4:])
    assert update_error(block, trace) == 0
    calibration = capture(model, data[:4])
    make_latent(block, DualBinarize(16, Fit.INPUTS), calibration)
    at_first = update_error(block, held_out)
    frozen = block.input_layernorm.weight.clone()
    seen = []
    reconstruct(block, trace, Reconstruction(steps=60), progress=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (60, 60)
    assert update_error(block, held_out) < 0.8 * at_first
    assert torch.equal(block.input_layernorm.weight, frozen)
    assert all(p.grad is None for p in block.parameters())
    rounded = llama()
    apply(rounded, {"model.layers.1.*proj": RoundToNearest(2, 16, ZeroPoint.INTEGER)})
    assert update_error(block, held_out) < update_error(rounded.model.layers[1], held_out)


def test_reconstruction_refuses_what_it_cannot_train():
    model, block = block_model()
    trace = trace_block(model, block, batches())
    with pytest.raises(ValueError, match="no latent layer"):
        reconstruct(block, trace, Reconstruction())
    with pytest.raises(ValueError, match="no batch reaches|no batch reached"):
        trace_block(model, torch.nn.Linear(2, 2), batches())
    with pytest.raises(ValueError, match="steps must be 1 or more"):
        Reconstruction(steps=0)
