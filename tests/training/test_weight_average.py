"""The moving average of weights: the recursion, the swap, and what a killed run loses of it (nothing)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shoestring.training.plan import TrainingPlan
from shoestring.training.trainer import Trainer
from shoestring.training.weight_average import WeightAverage


def averages(average):
    return {name: getattr(average, f"average_{i}").clone() for i, name in enumerate(average._names)}


@given(decay=st.sampled_from([0.0, 0.3, 0.999]), updates=st.integers(1, 12), seed=st.integers(0, 5))
def test_the_average_follows_the_recursion(decay, updates, seed):
    model = nn.Linear(3, 2).double()
    average = WeightAverage(model, decay)
    generator = torch.Generator().manual_seed(seed)
    expected = None
    for t in range(updates):
        weight = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            model.weight.copy_(weight)
        average.update()
        d = min(decay, (1 + t) / (10 + t))
        expected = weight if expected is None else d * expected + (1 - d) * weight
    torch.testing.assert_close(averages(average)["weight"], expected)


def test_it_starts_by_copying():
    model = nn.Linear(2, 2)
    average = WeightAverage(model, 0.99)
    with torch.no_grad():
        model.weight.fill_(7.0)
    average.update()
    assert torch.equal(averages(average)["weight"], torch.full((2, 2), 7.0))


def test_weights_are_swapped_and_come_back():
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    average = WeightAverage(model, 0.9)
    fresh = model.weight.detach().clone()
    x = torch.ones(1, 2)
    average.update()
    with torch.no_grad():
        model.weight.add_(1.0)
    own = model.weight.detach().clone()
    with average.applied() as inside:
        assert inside is model
        assert torch.equal(model.weight, fresh)
        before = model(x).detach()
    assert torch.equal(model.weight, own)
    assert torch.equal(average(x), model(x))
    assert not torch.equal(before, model(x))
    with pytest.raises(RuntimeError), average.applied():
        raise RuntimeError
    assert torch.equal(model.weight, own)


def test_frozen_weights_and_buffers_are_left_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].bias.requires_grad_(False)
    average = WeightAverage(model)
    assert average._names == ["0.weight", "1.weight", "1.bias"]
    model(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))
    running = model[1].running_mean.clone()
    average.update()
    with average.applied():
        assert torch.equal(model[1].running_mean, running)


def test_a_killed_run_resumes_with_the_same_average(tmp_path):
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def run(folder, stop_at=None):
        torch.manual_seed(1)
        average = WeightAverage(nn.Linear(3, 1), 0.9)

        def on_step(trainer, step, loss):
            average.on_step(trainer, step, loss)
            if step == stop_at:
                raise OSError("killed")

        trainer = Trainer(
            average,
            lambda model, batch: model(batch).square().mean(),
            TrainingPlan(steps=8, learning_rate=0.1),
            folder=folder,
            checkpoint_every=2,
            on_step=on_step,
        )
        try:
            trainer.run(lambda step: data[step % 4 : step % 4 + 3])
        except OSError:
            return None
        return average

    whole = run(tmp_path / "whole")
    assert run(tmp_path / "killed", stop_at=4) is None
    resumed = run(tmp_path / "killed")
    assert int(resumed.updates) == 8
    for name, value in averages(whole).items():
        assert torch.equal(averages(resumed)[name], value)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_bad_decay_is_named(decay):
    with pytest.raises(ValueError, match="decay="):
        WeightAverage(nn.Linear(1, 1), decay)


def test_a_model_without_trained_weights_is_refused():
    with pytest.raises(ValueError, match="nothing to average"):
        WeightAverage(nn.ReLU())
