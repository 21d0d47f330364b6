import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.training import TrainingPlan


def plan(**changes):
    return TrainingPlan(**{"steps": 10, "learning_rate": 1e-2, **changes})


@given(steps=st.integers(1, 50), warm=st.integers(0, 50), final=st.sampled_from([0.0, 0.1, 1.0]))
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_along_a_line_and_falls_by_its_schedule(steps, warm, final, schedule):
    warm = min(warm, steps)
    p = plan(steps=steps, warmup_steps=warm, schedule=schedule, final_factor=final)
    for step in range(steps):
        if step < warm:
            expected = (step + 1) / warm
        else:
            part = (step - warm) / (steps - warm)
            shape = {"cosine": (1 + math.cos(math.pi * part)) / 2, "linear": 1 - part, "constant": 1}
            expected = final + (1 - final) * shape[schedule]
        assert p.rate_factor(step) == pytest.approx(expected, abs=1e-12)


def test_it_is_frozen_and_goes_through_json():
    p = plan(betas=(0.9, 0.95), optimizer=torch.optim.Rprop, optimizer_options={"maximize": True})
    assert json.loads(json.dumps(p.as_json())) == p.as_json()
    assert p.as_json()["optimizer"] == "Rprop"
    assert p.as_json()["betas"] == [0.9, 0.95]
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.steps = 3


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"accumulate": 0},
        {"evaluate_every": 0},
        {"patience": 2},
        {"warmup_steps": 11},
        {"warmup_steps": -1},
        {"seed": -1},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"weight_decay": -0.1},
        {"final_factor": 1.5},
        {"clip_norm": 0.0},
        {"betas": (0.9, 1.0)},
        {"optimizer": "lion"},
    ],
)
def test_what_is_out_of_range_is_named(bad):
    name, value = next(iter(bad.items()))
    with pytest.raises(ValueError, match=f"{name}=.?{str(value)[:3].replace('(', '.')}"):
        plan(**bad)


@pytest.mark.parametrize("name", ["schedule", "precision"])
def test_unknown_names_are_answered_with_the_known_ones(name):
    with pytest.raises(Exception, match=name):
        plan(**{name: "other"})
