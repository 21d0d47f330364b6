"""The experiment behind the card of Vision Mamba: equal parameters, a fair rate, where the curves cross."""

import dataclasses

import pytest
import torch

from shoestring.data.pixel_sequences import digit_pixels
from shoestring.models.vision_mamba import VisionMamba
from shoestring.models.vision_mamba_config import VisionMambaConfig
from shoestring.models.vision_transformer import VisionTransformer
from shoestring.systems.vision_mamba import LESSONS, _tiny_sweep
from shoestring.systems.vision_mamba import learning as learning
from shoestring.systems.vision_mamba.resolution import build_models, crossover_note, memory_rows
from shoestring.yardstick import Effort
from shoestring.yardstick.timing import InterleavedTimes


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_transformer_has_as_many_parameters():
    config = VisionMambaConfig(
        image_size=(28, 28), channels=1, patch_size=4, stride=4, dim=64, depth=4, n_classes=10
    )
    mine, theirs = VisionMamba(config), VisionTransformer(learning.equal_transformer(config))
    assert count(theirs) == pytest.approx(count(mine), rel=0.005)
    assert (theirs.config.dim, theirs.config.depth) == (64, 4)


def test_every_network_chooses_its_rate_on_pictures_held_out(monkeypatch):
    lesson = LESSONS[Effort.SMOKE]
    task = digit_pixels(seed=0)
    train, trial = learning.split(task.train, 64)
    assert len(train[0]) + len(trial[0]) == len(task.train)
    used = []

    def learn(build, data, rate, steps, lesson, seed):
        used.append((rate, steps, len(data[1])))
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        torch.nn.init.zeros_(model[1].weight)
        torch.nn.init.constant_(model[1].bias, 0.0)
        model[1].bias.data[0] = abs(rate - 2e-3) * 1e4  # the further from 2e-3, the worse
        return model

    monkeypatch.setattr(learning, "learn", learn)
    lesson = dataclasses.replace(lesson, rates=(1e-3, 2e-3, 4e-3))
    assert learning.choose_rate(torch.nn.Identity, train, trial, lesson, 0) == 2e-3
    assert used == [(rate, lesson.trial_steps, len(train[1])) for rate in lesson.rates]


def test_accuracy_is_paired():
    right, other = torch.tensor([True, True, False, True]), torch.tensor([True, False, False, False])
    row = learning._row(learning.ACCURACY, right, other, "x")
    assert (row.method, row.baseline, row.difference) == (75, 25, 50)
    assert row.spread[0] < 50 < row.spread[1]
    assert row.holds
    assert not learning._row(learning.BOTH_WAYS, other, right, "x").holds


def test_where_the_curves_cross():
    def times(ratio):
        return InterleavedTimes({"vim": (ratio,) * 3, "fused": (1.0,) * 3}, {"vim": 1, "fused": 1}, 1, 0)

    assert "from about 400 pixels" in crossover_note({200: times(2.0), 800: times(0.5)}, "fused")
    assert "not faster than fused attention at 800" in crossover_note(
        {200: times(3.0), 800: times(2.0)}, "fused"
    )
    assert crossover_note({200: times(0.9), 800: times(0.5)}, "fused").startswith("faster")


def test_transformers_share_weights_and_explicit_scores_take_memory():
    models = build_models(_tiny_sweep(), 0)
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        outputs = [models[name](image, interpolate=True) for name in ("explicit", "fused")]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    explicit, fused = memory_rows(models, image)
    assert explicit.baseline > fused.baseline
    assert explicit.method == fused.method
