"""The experiments behind the card of FlashButterfly: arms do the same work; who chooses does not judge."""

import dataclasses

import pytest
import torch
from torch import nn

from shoestring.data.pixel_sequences import digit_pixels
from shoestring.kernels.fft_convolution import fft_convolve
from shoestring.layers.long_convolution.long_convolution import FeatureLongConv
from shoestring.systems import flash_butterfly
from shoestring.systems.flash_butterfly import pixels as flash_butterfly_pixels
from shoestring.systems.flash_butterfly.pixels import GEOMETRIC, NONE, SQUASH, STATE_SPACE, pixel_rows
from shoestring.systems.flash_butterfly.speed import direct_convolve, plain_fft_convolve
from shoestring.systems.flash_butterfly.text import TextExperiment, equal_hidden, text_rows
from shoestring.yardstick import Effort


@pytest.mark.parametrize("steps", [1, 33])
def test_what_is_timed_computes_the_same(steps):
    generator = torch.Generator().manual_seed(0)
    u, kernel = torch.randn(2, 5, steps, generator=generator), torch.randn(5, steps, generator=generator)
    expected = fft_convolve(u, kernel)
    torch.testing.assert_close(direct_convolve(u, kernel), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain_fft_convolve(u, kernel, 2 * steps), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("d_model", [16, 128, 768])
def test_the_narrow_mlp_weighs_as_much(d_model):
    mine = sum(p.numel() for p in FeatureLongConv(d_model).parameters())
    hidden = equal_hidden(d_model)
    layers = nn.Sequential(nn.Linear(d_model, hidden), nn.Linear(hidden, d_model))
    narrow = sum(p.numel() for p in layers.parameters())
    assert abs(narrow - mine) <= d_model + 1


def _outcomes(monkeypatch, right: dict[str, list[int]], chosen_by: dict[str, float]) -> list:
    """Rows of an experiment in which each arm gets these test pictures right."""
    arms = iter((NONE, SQUASH, GEOMETRIC, STATE_SPACE))

    def train(*_):
        name = next(arms)
        return flash_butterfly_pixels._Outcome(torch.tensor(right[name]).bool(), chosen_by[name], 1.0)

    monkeypatch.setattr(flash_butterfly_pixels, "_train", train)
    task = digit_pixels(train_size=10, test_size=10)
    return pixel_rows(task, flash_butterfly.PIXELS[Effort.SMOKE], 0)


def test_the_best_squash_is_chosen_by_other_pictures(monkeypatch):
    right = {NONE: [1, 1, 1, 0], SQUASH: [1, 0, 0, 0], GEOMETRIC: [1, 1, 1, 1], STATE_SPACE: [1, 1, 0, 0]}
    chosen_by = {NONE: 0.9, SQUASH: 0.8, GEOMETRIC: 0.7, STATE_SPACE: 0.9}
    as_s4d, as_none, *_ = _outcomes(monkeypatch, right, chosen_by)
    assert (as_s4d.baseline, as_s4d.method) == (50, 25)
    assert (as_none.baseline, as_none.method) == (75, 25)
    assert not as_s4d.holds
    assert as_s4d.against.endswith("squash)")
    as_s4d, as_none, *_ = _outcomes(monkeypatch, right, chosen_by | {GEOMETRIC: 0.81})
    assert as_s4d.method == 100
    assert as_s4d.holds
    assert as_none.spread[0] < 25 < as_none.spread[1]


def test_arms_differ_in_kernel_alone():
    none, squash, geometric = (
        flash_butterfly_pixels._arms(64)[name](8) for name in (NONE, SQUASH, GEOMETRIC)
    )
    assert none.filter.regulariser.threshold == 0
    assert squash.filter.regulariser == geometric.filter.regulariser
    assert dataclasses.replace(squash.filter.regulariser, threshold=0.0) == none.filter.regulariser
    assert geometric.filter.kernel[..., 0].std() > 5 * squash.filter.kernel[..., 0].std()


def test_a_trained_transformer_predicts_better_than_chance():
    size = TextExperiment(d_model=16, n_layers=1, context=8, batch=16, steps=100, windows=20)
    weights, loss, equal = text_rows("abcdefgh" * 200, size, 0)
    assert loss.baseline < 0.5 * 2.079
    assert loss.method < 0.5 * 2.079
    assert loss.spread[0] <= loss.difference <= loss.spread[1]
    assert equal.method == loss.method
    assert weights.method > 0
