import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shoestring.errors import TrainingDiverged
from shoestring.layers.parameter_hint import ParameterHint
from shoestring.training import Trainer, TrainingPlan

PLAN = TrainingPlan(6, 1e-2, weight_decay=0.01, warmup_steps=2)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_it_learns_and_says_what_it_did(small, task):
    loss, batches = task
    model = small()
    seen = []
    plan = TrainingPlan(80, 2e-2)
    record = Trainer(model, loss, plan, on_step=lambda _, step, value: seen.append((step, value))).run(
        batches
    )
    assert record.losses[-1] < record.losses[0] / 4
    assert seen == list(enumerate(record.losses))
    assert (record.steps, record.stopped, record.resumed_from) == (80, "finished", 0)
    assert record.seconds > 0
    assert not model.training


def test_it_is_the_plain_loop(small):
    """Without dropout or clipping at work, the steps are those of the loop that one writes by hand."""
    x = torch.randn(16, 4)
    ours, theirs = nn.Linear(4, 1), nn.Linear(4, 1)
    theirs.load_state_dict(ours.state_dict())
    plan = TrainingPlan(5, 0.1, weight_decay=0.1, clip_norm=0.5)
    Trainer(ours, lambda model, batch: model(batch).square().mean(), plan).run(lambda step: x + step)
    optimizer = torch.optim.AdamW(theirs.parameters(), weight_decay=0.1)
    for step in range(5):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 + math.cos(math.pi * step / 5)) / 2
        optimizer.zero_grad()
        theirs(x + step).square().mean().backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=1e-6)


def test_the_seed_decides_and_the_callers_generators_stay(small, task):
    loss, batches = task
    models = []
    for seed in (0, 0, 1):
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
        models.append(small())
        Trainer(models[-1], loss, TrainingPlan(4, 1e-2, seed=seed)).run(batches)
        torch.rand(seed + 1), random.random()  # whatever the caller draws between runs
        torch.set_rng_state(states[0]), random.setstate(states[1])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[2][1])  # noqa: NPY002
    assert_same(weights(models[0]), weights(models[1]))
    assert not torch.equal(models[0].last.weight, models[2].last.weight)


@pytest.mark.parametrize("parts", [2, 5, 12])
def test_accumulation_equals_the_big_batch(parts):
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(12, 4, dtype=torch.float64)
    records = []
    for model, accumulate in zip(models, (1, parts), strict=True):
        plan = TrainingPlan(5, 1e-2, accumulate=accumulate, optimizer="sgd")
        trainer = Trainer(model, lambda m, b: F.mse_loss(m(b), b.sum(1, keepdim=True)), plan)
        records.append(trainer.run(lambda step: x * (step + 1)))
    torch.testing.assert_close(models[0][0].weight, models[1][0].weight, rtol=0, atol=1e-6)
    assert records[0].losses == pytest.approx(records[1].losses, abs=1e-6)


def test_too_small_a_batch_for_the_parts_is_refused(small, task):
    loss, batches = task
    with pytest.raises(ValueError, match="12 samples cannot be cut in 13"):
        Trainer(small(), loss, TrainingPlan(1, 1e-2, accumulate=13)).run(batches)


def test_gradients_are_bounded():
    model = nn.Linear(3, 1, bias=False)
    before = model.weight.detach().clone()
    plan = TrainingPlan(1, 1.0, optimizer="sgd", clip_norm=0.25)
    Trainer(model, lambda m, b: m(b).sum() * 100, plan).run(lambda _: torch.ones(1, 3))
    assert (model.weight - before).norm().item() == pytest.approx(0.25, abs=1e-5)


def test_hints_are_honoured():
    model = nn.Linear(3, 1)
    model.parameter_hints = {"bias": ParameterHint(learning_rate=0.5)}
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    plan = TrainingPlan(1, 0.1, optimizer="sgd", clip_norm=None)
    Trainer(model, lambda m, b: m(b).sum(), plan).run(lambda _: torch.ones(1, 3))
    torch.testing.assert_close(model.weight, weight - 0.1)
    torch.testing.assert_close(model.bias, bias - 0.5)


def test_bfloat16_is_autocast_and_weights_stay():
    model = nn.Linear(3, 1)
    types = []

    def loss(m, batch):
        y = m(batch)
        types.append(y.dtype)
        return y.float().square().mean()

    Trainer(model, loss, TrainingPlan(1, 0.1, precision="bfloat16")).run(lambda _: torch.ones(2, 3))
    assert types == [torch.bfloat16]
    assert model.weight.dtype == torch.float32


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_and_names_the_step(small, task, value):
    loss, batches = task
    model, kept = small(), {}

    def goes_wrong(m, batch):
        return loss(m, batch) * (value if trainer.step == 3 else 1)

    def keep(trainer, step, value):
        kept.update({name: p.detach().clone() for name, p in model.named_parameters()})

    trainer = Trainer(model, goes_wrong, PLAN, on_step=keep)
    with pytest.raises(TrainingDiverged, match=rf"the loss of step 3 is {value}.*lower learning_rate"):
        trainer.run(batches)
    assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters())


def test_a_gradient_that_is_no_number_stops_too():
    model = nn.Linear(1, 1, bias=False)
    with pytest.raises(TrainingDiverged, match="gradient norm of step 0 is nan"):
        Trainer(model, lambda m, b: (m.weight * 0).sqrt().sum() * 0, PLAN).run(lambda _: None)


def test_early_stop_gives_the_best_weights_back(small, task):
    loss, batches = task
    values, seen = iter([3.0, 1.0, 2.0, 1.0, 0.0]), []

    def evaluate(m):
        assert not m.training
        assert not torch.is_grad_enabled()
        seen.append(weights(m))
        return next(values)

    plan = TrainingPlan(20, 1e-2, evaluate_every=2, patience=2)
    model = small()
    record = Trainer(model, loss, plan, evaluate=evaluate).run(batches)
    assert [(one.steps, one.value) for one in record.evaluations] == [(2, 3.0), (4, 1.0), (6, 2.0), (8, 1.0)]
    assert (record.stopped, record.steps, record.best.steps) == ("patience", 8, 4)
    assert_same(weights(model), seen[1])


def test_an_evaluation_changes_nothing(small, task):
    loss, batches = task
    models = [small(), small()]

    def evaluate(m):
        torch.rand(3)
        return m(torch.randn(5, 4)).sum().item()

    Trainer(models[0], loss, PLAN).run(batches)
    plan = TrainingPlan(6, 1e-2, weight_decay=0.01, warmup_steps=2, evaluate_every=1)
    Trainer(models[1], loss, plan, evaluate=evaluate).run(batches)
    assert_same(weights(models[0]), weights(models[1]))


def test_frozen_modules_keep_their_mode_after_an_evaluation(small, task):
    loss, batches = task
    model, modes = small(), []

    def freeze(trainer, step, value):
        modes.append(model.norm.training)
        model.norm.eval()

    plan = TrainingPlan(3, 1e-2, evaluate_every=1)
    Trainer(model, loss, plan, evaluate=lambda m: 0.0, on_step=freeze).run(batches)
    assert modes == [True, False, False]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda m, b: m(b), r"shape \(2, 1\)"),
        (lambda m, b: 1.0, "a float"),
        (lambda m, b: m(b).sum().detach(), "one without gradients"),
    ],
)
def test_a_loss_must_be_a_scalar_with_gradients(loss, message):
    with pytest.raises(ValueError, match=message):
        Trainer(nn.Linear(3, 1), loss, PLAN).run(lambda _: torch.ones(2, 3))


def test_bad_settings_are_refused(small, task):
    loss, _ = task
    with pytest.raises(ValueError, match="evaluate_every=None and evaluate="):
        Trainer(small(), loss, PLAN, evaluate=lambda m: 0.0)
    with pytest.raises(ValueError, match="evaluate_every=2 and evaluate=None"):
        Trainer(small(), loss, TrainingPlan(4, 1e-2, evaluate_every=2))
    with pytest.raises(ValueError, match="checkpoint_every=0"):
        Trainer(small(), loss, PLAN, checkpoint_every=0)
    with pytest.raises(ValueError, match="folder"):
        Trainer(small(), loss, PLAN, tensorboard=True)


def test_the_bar_goes_to_stderr(small, task, capsys):
    loss, batches = task
    Trainer(small(), loss, PLAN, progress=True).run(batches)
    assert capsys.readouterr().out == ""
