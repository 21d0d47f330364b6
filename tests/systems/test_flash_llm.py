"""The experiments behind the card of Flash-LLM."""

import copy

import pytest
import torch

from shoestring.compression import StoreSparse, Wanda, apply, capture, prune_in_place
from shoestring.numbers.bitmap_matrix import BitmapMatrix
from shoestring.systems import flash_llm
from shoestring.systems.flash_llm.claims import BYTES, FORMULA, bytes_metric
from shoestring.systems.flash_llm.kernels import Turns, crossover_row, per_row_mask, size_rows
from shoestring.systems.flash_llm.model import compiled, decode, random_task, trained_task
from shoestring.yardstick.comparison import Effort


def test_every_row_loses_the_same_share():
    draws = torch.rand(7, 40, generator=torch.Generator().manual_seed(0))
    for sparsity in (0.5, 0.7, 0.9):
        assert (per_row_mask(draws, sparsity).sum(1) == 40 - round(40 * sparsity)).all()


@pytest.mark.parametrize(
    ("ratios", "place"),
    [
        ((0.5, 0.8, 2.0), 0.7 + 0.1 * 0.2434),
        ((0.5, 0.6, 0.7), 1.0),
        ((1.5, 2.0, 3.0), 0.5),
        ((0.5, 1.0, 2.0), 0.7),
    ],
)
def test_the_crossover_lies_where_the_ratio_passes_one(ratios, place):
    assert crossover_row((0.5, 0.7, 0.8), ratios).method == pytest.approx(place, abs=1e-4)


def test_sizes_are_those_of_the_tensors_and_hold_their_bars():
    weight = torch.randn(512, 4096, generator=torch.Generator().manual_seed(0))
    draws = torch.rand(512, 4096, generator=torch.Generator().manual_seed(1))
    for sparsity in BYTES:
        rows = {
            row.metric: row
            for row in size_rows(BitmapMatrix.from_dense(weight * per_row_mask(draws, sparsity)), sparsity)
        }
        row = rows[bytes_metric(sparsity)]
        assert row.holds
        assert row.method == pytest.approx(512 * 4096 * (1 + 16 * (1 - sparsity)) / 8, rel=0.005)
        if FORMULA.metric in rows:
            assert rows[FORMULA.metric].method == 0
    dense = size_rows(BitmapMatrix.from_dense(weight), 0.5)[0]
    assert not dense.holds, "a matrix that was not pruned misses the bar"


def test_copies_take_turns():
    seen = []
    turns = Turns([lambda: seen.append(0), lambda: seen.append(1), lambda: seen.append(2)])
    for _ in range(5):
        turns()
    assert seen == [0, 1, 2, 0, 1]


def test_the_compiled_step_decodes_the_text_of_the_masked_model():
    task = random_task(3)
    masked = copy.deepcopy(task.decoder)
    prune_in_place(masked, Wanda(0.7), calibration=capture(masked, task.calibration.split(1)))
    sparse = apply(copy.deepcopy(masked), {"model.layers.*": StoreSparse()})
    prompt = task.held_out[0, :20]
    with torch.inference_mode():
        texts = [decode(compiled(model, 60), prompt, 40) for model in (masked, sparse)]
        plain = decode(compiled(task.decoder, 60), prompt, 40)
    assert texts[0] == texts[1]
    assert plain != texts[0], "pruning changes the text, so that the comparison can fail"


@pytest.mark.slow
def test_pruned_smollm2_writes_the_text_of_the_masked_model():
    task = trained_task(4, 2, 256)
    masked = copy.deepcopy(task.decoder)
    prune_in_place(masked, Wanda(0.5), calibration=capture(masked, task.calibration.split(1)))
    sparse = apply(copy.deepcopy(masked), {"model.layers.*": StoreSparse()})
    prompt = task.held_out[0, :64]
    with torch.inference_mode():
        texts = [decode(compiled(model, 128), prompt, 64) for model in (masked, sparse, task.decoder)]
    assert texts[0] == texts[1]
    assert texts[2] != texts[0], "pruning changes the text, so that the comparison can fail"


@pytest.mark.slow
def test_every_bar_holds():
    assert flash_llm.measure(Effort.QUICK, 0).short == ()
