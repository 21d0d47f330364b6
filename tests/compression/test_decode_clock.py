"""The stopwatch measures what it should, once; how long that takes is nobody's business here."""

import itertools

import pytest
import torch
from tests.compression.models import gpt2, llama

from shoestring.compression import decode_clock
from shoestring.compression.apply import slots
from shoestring.compression.decode_clock import StopWatch, timed_steps
from shoestring.compression.dual_binarize import DualBinarize, Fit
from shoestring.compression.group_quantize import GPTQ, RoundToNearest
from shoestring.compression.kv_quantize import KVQuantize
from shoestring.compression.low_rank import ActivationAwareLowRank, LowRank
from shoestring.compression.pruning import MagnitudePrune, SparseGPT, Wanda
from shoestring.compression.weight_matrix import matrix_shape
from shoestring.kernels.tuning import TuningTable
from shoestring.models.decoder import Decoder
from shoestring.numbers.grouped_affine import ZeroPoint

RECIPE = GPTQ(4, 16, ZeroPoint.INTEGER, 8)


@pytest.fixture(autouse=True)
def _own_table(tmp_path, monkeypatch):
    table = TuningTable(tmp_path / "decode.json")
    monkeypatch.setattr(decode_clock, "tuning_table", lambda name: table)


def decoder():
    return Decoder.from_transformers(llama(tied=False))


def kinds(model):
    return {slot.name.rpartition(".")[2]: slot for slot in slots(model)}


@pytest.mark.parametrize("make", [decoder, llama, gpt2])
def test_layers_are_timed_once_for_each_shape_and_form(make, monkeypatch):
    model = make()
    watch, seen = StopWatch(model), []
    monkeypatch.setattr(
        decode_clock, "measure_fastest", lambda works, passes: seen.append(works) or {"": 1e-3 * len(seen)}
    )
    timed = [slot for slot in slots(model) if "embed" not in slot.name and "wte" not in slot.name]
    timed = [slot for slot in timed if RECIPE.why_not(slot.name, slot.module) is None]
    first = {slot.name: watch.layer_seconds(slot, RECIPE, None) for slot in timed}
    shapes = {matrix_shape(slot.module) for slot in timed}
    assert len(seen) == len(shapes)
    again = {slot.name: StopWatch(model).layer_seconds(slot, RECIPE, None) for slot in timed}
    assert again == pytest.approx(first)
    assert len(seen) == len(shapes), "known by now, to another watch too"
    for works in seen:
        works[""]()  # and it runs


def test_an_embedding_by_itself_takes_no_time():
    model = decoder()
    assert StopWatch(model).layer_seconds(kinds(model)["embed_tokens"], RECIPE, None) == 0.0


def test_a_tall_matrix_takes_as_much_longer_as_it_is_taller(monkeypatch):
    model = decoder()
    monkeypatch.setattr(decode_clock, "MOST_ROWS", 24)
    monkeypatch.setattr(decode_clock, "measure_fastest", lambda works, passes: {"": 6e-6})
    named, watch = kinds(model), StopWatch(model)
    copies = 6e-6 / watch.layer_seconds(named["k_proj"], RECIPE, None)  # 16 rows, as they are
    assert copies >= 1
    tall = watch.layer_seconds(named["lm_head"], RECIPE, None)
    short = watch.layer_seconds(named["q_proj"], RECIPE, None)
    assert tall == pytest.approx(short * 96 / 32, rel=1e-6), "both are timed as 24 rows of 32"


@pytest.mark.parametrize("make", [decoder, llama])
@pytest.mark.parametrize("compiler", ["", "none"])
def test_the_rest_is_timed_without_the_layers(make, compiler, monkeypatch):
    if compiler:
        monkeypatch.setenv("SHOESTRING_CC", compiler)
    model, fed = make(), []
    before = {name: id(module) for name, module in model.named_modules()}
    monkeypatch.setattr(
        decode_clock, "timed_steps", lambda runner, context: fed.append((runner, context)) or [2e-3, 1e-3]
    )
    watch = StopWatch(model, context=40)
    assert watch.rest_seconds(None) == watch.rest_seconds(None) == 1e-3
    ((runner, context),) = fed
    assert context == 40
    assert before == {name: id(module) for name, module in model.named_modules()}
    logits = runner.feed(torch.tensor([[1, 2, 3]]))
    assert not logits.any(), "the head gives zeros"
    assert next(runner.model.parameters()).data_ptr() == next(model.parameters()).data_ptr(), "no copy"


def test_steps_lead_up_to_the_context(monkeypatch):
    class Counting:
        device, vocab_size = torch.device("cpu"), 7
        context, end_tokens, cache_bytes = None, frozenset(), 0

        def __init__(self):
            self.fed, self.sizes = 0, []

        def feed(self, ids):
            self.fed += ids.shape[1]
            self.sizes.append(ids.shape[1])
            return torch.zeros(1, 7)

        def prompt_is_read(self):
            pass

    clock = itertools.count()
    monkeypatch.setattr(decode_clock.time, "perf_counter", lambda: float(next(clock)))
    for context, steps in ((128, 48), (2000, 48), (60, 29), (3, 1), (2, 1)):
        runner = Counting()
        assert timed_steps(runner, context) == [1.0] * steps
        assert runner.fed == context
        assert max(runner.sizes) <= 512


def test_a_context_is_never_more_than_the_model_sees():
    assert StopWatch(gpt2()).context == 32
    assert StopWatch(llama()).context == 128
    assert StopWatch(llama(), 999).context == 999
    assert StopWatch(llama(), 1).context == 2, "a prompt and a step"
    model = llama()
    assert StopWatch(model, 8).step_seconds(model) > 0
    KVQuantize(8, 8, tail_tokens=8).rewrite_model(model)
    assert StopWatch(model, 16).step_seconds(model) > 0
    assert StopWatch(llama(), 16).rest_seconds(KVQuantize(8, 8, tail_tokens=8)) > 0


def test_twins_need_no_calibration_and_store_the_same():
    module = torch.nn.Linear(128, 24)
    for recipe, twin in (
        (RECIPE, RoundToNearest(4, 16, ZeroPoint.INTEGER, 8)),
        (DualBinarize(64), DualBinarize(64, Fit.WEIGHTS)),
        (Wanda(0.6), MagnitudePrune(0.6)),
        (SparseGPT(0.6), MagnitudePrune(0.6)),
        (ActivationAwareLowRank(0.3), LowRank(0.3)),
    ):
        assert recipe.timing_twin() == twin
        twin.rewrite("w", module, None)
        assert twin.bytes_after(module) == pytest.approx(recipe.bytes_after(module), rel=0.01)
