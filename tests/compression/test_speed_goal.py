"""A speed is met by measurement or not at all; all clocks here are made up."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from tests.compression.models import llama
from transformers import LlamaConfig, LlamaForCausalLM

from shoestring.compression import slots
from shoestring.compression.fit import divide_only, fit
from shoestring.compression.fitted import FitSettings
from shoestring.compression.group_quantize import GPTQ
from shoestring.compression.kv_quantize import KVQuantize
from shoestring.compression.scale_tuning import ScaleTuning
from shoestring.compression.speed import MARGIN, TRUSTED_RATIO, SpeedGoal
from shoestring.compression.weight_matrix import is_embedding, matrix_shape
from shoestring.layers.packed_linear import PackedLinear
from shoestring.numbers.grouped_affine import ZeroPoint

MENU = [GPTQ(bits, 16, ZeroPoint.INTEGER, 8) for bits in (2, 3, 4, 8)]
SETTINGS = FitSettings(window=24, gradient_windows=4, tuning=ScaleTuning(0))
SECONDS_PER_BIT = 1e-8


@pytest.fixture(autouse=True)
def _one_profile_for_all(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path_factory.getbasetemp() / "speed-cache"))


@pytest.fixture
def model():
    made = llama(tied=True)
    for parameter in made.parameters():
        parameter.data *= 3
    return made


def windows(count=10):
    return torch.randint(0, 96, (count, 24), generator=torch.Generator().manual_seed(1))


@dataclass
class FakeClock:
    """Every bit of a weight takes as long, a step 1 ms more; the real thing takes `truth` times that."""

    truth: float = 1.0
    cached_costs: float = 0.0
    context: int = 128
    steps: list[float] = field(default_factory=list)

    def layer_seconds(self, slot, recipe, cache):
        rows, cols = matrix_shape(slot.module)
        return 0.0 if is_embedding(slot.module) else rows * cols * recipe.bits * SECONDS_PER_BIT

    def rest_seconds(self, cache):
        return 1e-3 + (0.0 if cache is None else self.cached_costs)

    def step_seconds(self, model):
        cached = 0.0 if getattr(model, "kv_cache_format", None) is None else self.cached_costs
        bits = sum(
            m.packed.rows * m.packed.cols * m.packed.form.bits
            for m in model.modules()
            if isinstance(m, PackedLinear)
        )
        self.steps.append(1e-3 + cached + self.truth * bits * SECONDS_PER_BIT)
        return self.steps[-1]


def speed_at(model, bits, truth=1.0):
    """Tokens a second of the model with so many bits everywhere."""
    weights = sum(math.prod(matrix_shape(slot.module)) for slot in slots(model))
    return 1 / (1e-3 + truth * weights * bits * SECONDS_PER_BIT)


def test_a_speed_alone_is_met_with_as_many_bits_as_it_leaves_time_for(model):
    wanted = speed_at(model, 4.5)
    clock = FakeClock()
    fitted = fit(model, windows(), None, speed=SpeedGoal(wanted, clock), settings=SETTINGS, menu=MENU)
    assert fitted.met
    assert fitted.speed.measured >= wanted
    assert fitted.speed.predicted == pytest.approx(fitted.speed.measured)
    assert fitted.speed.measured < 1.15 * wanted, "and no faster than it must be"
    assert fitted.speed.context == 128
    assert len({recipe.bits for recipe in fitted.recipes.values()}) > 1
    slower = fit(
        model, windows(), None, speed=SpeedGoal(wanted / 1.6, FakeClock()), settings=SETTINGS, menu=MENU
    )
    assert slower.tuned < fitted.tuned, "time is spent on quality"


def test_bytes_and_speed_are_met_together(model):
    wanted = speed_at(model, 3)
    by_speed = fit(model, windows(), None, speed=SpeedGoal(wanted, FakeClock()), settings=SETTINGS, menu=MENU)
    budget = by_speed.file_bytes - 1500
    both = fit(model, windows(), budget, speed=SpeedGoal(wanted, FakeClock()), settings=SETTINGS, menu=MENU)
    assert both.met
    assert both.file_bytes <= budget
    assert both.speed.measured >= wanted
    alone = fit(model, windows(), 10**8, speed=None, settings=SETTINGS, menu=MENU)
    assert alone.speed is None
    assert alone.attempts[0].speed is None


def test_a_prediction_that_was_off_is_corrected_by_what_was_measured(model):
    wanted = speed_at(model, 4, truth=1.5)
    clock = FakeClock(truth=1.5)
    fitted = fit(model, windows(), None, speed=SpeedGoal(wanted, clock), settings=SETTINGS, menu=MENU)
    first, *others = fitted.attempts
    assert first.speed.predicted > wanted > first.speed.measured, "the first division was too slow"
    assert others[0].speed.measured >= wanted
    assert fitted.met
    assert fitted.speed.measured >= wanted
    assert fitted.speed.predicted == pytest.approx(fitted.speed.measured, rel=0.02)
    # And the other way round: what was predicted too slow gets its bits back.
    lazy = FakeClock(truth=0.5)
    wanted = speed_at(model, 6, truth=0.5)
    fitted = fit(model, windows(), None, speed=SpeedGoal(wanted, lazy), settings=SETTINGS, menu=MENU)
    assert fitted.attempts[0].speed.measured > 1.2 * wanted
    assert wanted <= fitted.speed.measured < 1.15 * wanted
    assert fitted.met


def test_a_speed_missed_by_little_is_planned_again(model):
    """An error that a plan would be trusted with is corrected all the same where the speed was missed."""
    clock = FakeClock(truth=1.1)
    weights = sum(math.prod(matrix_shape(slot.module)) for slot in slots(model))
    clock.rest_seconds = lambda cache: 1.2 * weights * 4 * SECONDS_PER_BIT
    rest, bits = clock.rest_seconds(None), 4 * weights * SECONDS_PER_BIT
    clock.step_seconds = lambda made: rest + 1.1 * FakeClock().step_seconds(made) - 1.1e-3
    fitted = fit(
        model, windows(), None, speed=SpeedGoal(1 / (rest + bits), clock), settings=SETTINGS, menu=MENU
    )
    first = fitted.attempts[0].speed
    assert first.measured < first.wanted < first.predicted < TRUSTED_RATIO * first.measured
    assert fitted.met


def test_success_is_never_reported_for_a_speed_that_was_not_measured(model):
    """The plan is content, the machine is not."""
    wanted = speed_at(model, 2) / MARGIN / 1.01
    fitted = fit(
        model, windows(), None, speed=SpeedGoal(wanted, FakeClock(truth=3)), settings=SETTINGS, menu=MENU
    )
    assert fitted.attempts[0].speed.predicted >= wanted
    assert fitted.speed.measured < wanted
    assert not fitted.met
    assert not fitted.speed.met


def test_a_speed_that_falls_at_the_last_measurement_is_not_met(model):
    class Tiring(FakeClock):
        def step_seconds(self, model):
            return super().step_seconds(model) * (1 if len(self.steps) == 1 else 2)

    settings = FitSettings(window=24, gradient_windows=4, tuning=ScaleTuning(0), rounds=0)
    wanted = speed_at(model, 4)
    fitted = fit(model, windows(), None, speed=SpeedGoal(wanted, Tiring()), settings=settings, menu=MENU)
    assert fitted.attempts[0].speed.met
    assert not fitted.met


def test_a_speed_out_of_reach_gives_the_fastest_model_within_the_budget(model):
    goal = SpeedGoal(2 * speed_at(model, 2), FakeClock())
    fitted = fit(model, windows(), None, speed=goal, settings=SETTINGS, menu=MENU)
    assert not fitted.met
    assert {recipe.bits for recipe in fitted.recipes.values()} == {2}
    plan = divide_only(model, windows(), None, speed=goal, settings=SETTINGS, menu=MENU)
    assert not plan.met
    assert plan.speed.predicted == pytest.approx(speed_at(model, 2))
    assert plan.speed.measured is None
    # More than the time that all but the layers takes: nothing is left for these.
    beyond = divide_only(
        model, windows(), None, speed=SpeedGoal(2000, FakeClock()), settings=SETTINGS, menu=MENU
    )
    assert not beyond.met


def test_a_size_out_of_reach_gives_the_smallest_model(model):
    goal = SpeedGoal(speed_at(model, 4), FakeClock())
    fitted = fit(model, windows(), 10_000, speed=goal, settings=SETTINGS, menu=MENU)
    assert not fitted.met
    assert fitted.speed.met
    assert {recipe.bits for recipe in fitted.recipes.values()} == {2}


def test_a_cache_that_makes_steps_slow_is_left_in_full():
    torch.manual_seed(0)
    wide = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2,
        )
    ).eval()  # fmt: skip
    wanted = speed_at(wide, 4)
    smallest = divide_only(wide, windows(), 1, context=256, settings=SETTINGS, menu=MENU)
    budget = smallest.file_bytes + smallest.caches[0].nbytes + 2000

    def chosen(cached_costs):
        return divide_only(
            wide, windows(), budget, context=256, settings=SETTINGS, menu=MENU,
            speed=SpeedGoal(wanted, FakeClock(cached_costs=cached_costs)),
        )  # fmt: skip

    assert isinstance(chosen(0.0).cache.recipe, KVQuantize), "in full it would leave weights little"
    slow = chosen(1.0)
    assert slow.cache.recipe is None, "a second a token"
    assert slow.met


@pytest.mark.parametrize("speed", [0, -1, math.nan, math.inf])
def test_bad_speeds(speed):
    with pytest.raises(ValueError, match=f"tokens_per_second={speed} is no speed; give a number above 0"):
        SpeedGoal(speed, FakeClock())


def test_nothing_asked_for(model):
    with pytest.raises(ValueError, match="nothing is asked for; give budget_bytes, a speed, or both"):
        fit(model, windows(), None, settings=SETTINGS)
