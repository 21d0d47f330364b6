"""The predicted divergence against the Fisher information written out, and against what really happens."""

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from tests.compression.models import gpt2, llama

from shoestring.compression import slots
from shoestring.compression.sensitivity import (
    curvature_loss,
    draw,
    measure_sensitivity,
    naive_curvature_loss,
)
from shoestring.yardstick.language_quality import divergence


def windows(count=4, length=24, seed=1):
    return torch.randint(0, 96, (count, length), generator=torch.Generator().manual_seed(seed))


def measured(model, count=4, **settings):
    generator = torch.Generator().manual_seed(0)
    return measure_sensitivity(model, windows(count), gradient_windows=count, generator=generator, **settings)


@given(rows=st.integers(1, 6), cols=st.integers(1, 7), seed=st.integers(0, 99))
def test_loss_is_half_the_quadratic_form_of_the_kronecker_product(rows, cols, seed):
    torch.manual_seed(seed)
    difference, weight, root = torch.randn(rows, cols), torch.rand(rows), torch.randn(cols, cols)
    arguments = difference, weight, root @ root.T
    assert curvature_loss(*arguments) == pytest.approx(naive_curvature_loss(*arguments), rel=1e-4, abs=1e-6)


def test_tokens_are_drawn_by_their_probabilities_and_impossible_ones_never():
    p = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    drawn = draw(p.log().expand(40_000, -1), torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=6) / len(drawn)
    sigma = (p * (1 - p) / len(drawn)).sqrt()
    assert ((shares - p).abs() <= 4 * sigma).all()
    again = draw(p.log().expand(40_000, -1), torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    assert set(draw(torch.tensor([[-9e9, 0.0]]).expand(99, -1), torch.Generator()).tolist()) == {1}


def test_head_gradients_are_those_of_the_softmax():
    """At the logits E[g²] over drawn tokens is the mean of p (1 − p); the rest follows by the chain rule."""
    model = llama(tied=False)
    for parameter in model.parameters():
        parameter.data *= 4  # far from uniform predictions
    with torch.no_grad():
        p = model(windows(60)).logits.softmax(-1)
    expected = (p * (1 - p)).mean((0, 1))
    got = measured(model, 60).output_gradients["lm_head"]
    assert got.sum().item() == pytest.approx(expected.sum().item(), rel=0.05)
    assert torch.corrcoef(torch.stack([got, expected]))[0, 1] > 0.8


def test_every_weight_is_judged_and_tied_ones_by_both_uses():
    model = llama(tied=True)
    sensitivity = measured(model)
    for slot in slots(model):
        assert sensitivity.loss(slot, torch.ones_like(slot.module.weight)) > 0
    (head,) = [slot for slot in slots(model) if "lm_head" in slot.names]
    both = sensitivity.loss(head, torch.ones_like(head.module.weight))
    counts = sensitivity.calibration.token_counts["model.embed_tokens"]
    parts = [
        curvature_loss(
            torch.ones_like(head.module.weight),
            sensitivity.output_gradients["lm_head"],
            sensitivity.calibration.second_moment("lm_head"),
        ),
        curvature_loss(
            torch.ones_like(head.module.weight),
            counts / counts.sum(),
            sensitivity.table_gradients["model.embed_tokens"],
        ),
    ]
    assert both == pytest.approx(sum(parts))


def test_prediction_is_near_what_a_small_change_really_costs():
    """A random change of one layer: predicted and measured divergence agree within a factor of two."""
    model = llama(tied=False)
    for parameter in model.parameters():
        parameter.data *= 4  # far from uniform predictions
    sensitivity = measured(model, 24)
    ratios = []
    for slot in slots(model):
        changed = copy.deepcopy(model)
        weight = changed.get_submodule(slot.name).weight
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)) * weight.std() * 0.02
        weight.data += noise
        ratios.append(divergence(changed, model, windows(24)).kld / sensitivity.loss(slot, noise))
    middle = sorted(ratios)[len(ratios) // 2]
    assert 0.5 < middle < 2, ratios


@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_model_is_left_as_it_was(make):
    model = make().train()
    before = copy.deepcopy(model.state_dict())
    measured(model)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_seed_decides():
    a, b = measured(llama()), measured(llama())
    assert all(torch.equal(a.output_gradients[n], b.output_gradients[n]) for n in a.output_gradients)


def test_moments_are_float32_under_autocast():
    got = measured(llama(), autocast=torch.bfloat16)
    exact = measured(llama())
    for name in exact.calibration.moments:
        a, b = got.calibration.second_moment(name), exact.calibration.second_moment(name)
        assert a.dtype == torch.float32
        assert torch.linalg.eigvalsh(a.double()).min() > -1e-6 * a.diagonal().max()
        assert (a - b).norm() < 0.05 * b.norm()


def test_bad_input():
    generator = torch.Generator()
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"gradient_windows={count} must be between 1 and the 4"):
            measure_sensitivity(llama(), windows(4), gradient_windows=count, generator=generator)
    with pytest.raises(TypeError, match="a tensor of logits"):
        measure_sensitivity(
            torch.nn.Sequential(torch.nn.Embedding(96, 4), torch.nn.LSTM(4, 4)),
            windows(1),
            gradient_windows=1,
            generator=generator,
        )
