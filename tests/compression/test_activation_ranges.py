import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.compression.activation_ranges import (
    BINS,
    KullbackLeibler,
    MagnitudeHistogram,
    MeanSquare,
    MinMax,
    Percentile,
)


def seen(*batches):
    histogram = MagnitudeHistogram("conv")
    for batch in batches:
        histogram.observe(torch.as_tensor(batch, dtype=torch.float32))
    return histogram


def uniform(levels):
    """Symmetric uniform quantisation to ±levels steps."""

    def quantise(values, threshold):
        step = threshold / levels
        return (values.clamp(-threshold, threshold) / step).round() * step

    return quantise


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=5), seed=st.integers(0, 999))
def test_counts_are_kept_while_the_bins_widen(sizes, seed):
    generator = np.random.default_rng(seed)
    batches = [generator.standard_normal(n) * 10.0 ** generator.integers(-3, 4) for n in sizes]
    histogram, values = seen(*batches), np.concatenate(batches).astype(np.float32)
    assert histogram.counts.sum() == len(values)
    if not len(values):
        assert not histogram.seen
        return
    assert histogram.absmax == abs(values).max()
    assert histogram.width * BINS >= histogram.absmax * (1 - 1e-5)
    exact = np.bincount(np.minimum(abs(values) / histogram.width, BINS - 1).astype(int), minlength=BINS)
    cumulated = abs(np.cumsum(exact) - histogram.counts.cumsum(0).numpy())
    assert cumulated.max() <= 2  # a value on an edge may fall to either side


def test_minmax_takes_everything_and_keeps_the_signs():
    histogram = seen([0.5, 3.0], [-1.0])
    assert histogram.range(MinMax().threshold(histogram, uniform(7))) == (-1.0, 3.0)
    assert histogram.range(0.7) == (-0.7, 0.7)
    positive = seen([0.0, 2.0])
    assert positive.range(1.5) == (0.0, 1.5)


@given(percent=st.sampled_from([50.0, 99.0, 99.99, 100.0]), seed=st.integers(0, 99))
def test_the_percentile_is_numpys_to_the_width_of_a_bin(percent, seed):
    values = np.random.default_rng(seed).standard_normal(2000)
    histogram = seen(values)
    exact = np.percentile(abs(values), percent, method="inverted_cdf")
    assert Percentile(percent).threshold(histogram, uniform(7)) == pytest.approx(
        exact, abs=2 * histogram.width
    )


def test_mean_square_beats_every_other_threshold_of_its_grid():
    values = torch.from_numpy(np.random.default_rng(0).laplace(size=20_000)).float()
    histogram, quantise = seen(values), uniform(3)
    chosen = MeanSquare().threshold(histogram, quantise)

    def error(threshold):
        return float((quantise(values, threshold) - values).square().mean())

    grid = [share * histogram.absmax for share in np.linspace(0.8, 1.0, 20)]
    assert min(grid, key=error) == pytest.approx(chosen, rel=1e-6)
    assert chosen < histogram.absmax  # a coarse grid gains by cutting the tail
    assert MeanSquare().threshold(histogram, uniform(10**6)) == histogram.absmax


def test_divergence_keeps_the_range_when_every_level_counts_and_cuts_a_lone_outlier():
    even = seen(np.linspace(0, 1, 50_000))
    assert KullbackLeibler().threshold(even, uniform(127)) == pytest.approx(1.0, rel=0.02)
    lone = seen(np.concatenate([np.random.default_rng(0).normal(size=50_000), [10.0]]))
    assert KullbackLeibler().threshold(lone, uniform(15)) == pytest.approx(8.0)


@pytest.mark.parametrize("choice", [MinMax(), Percentile(), MeanSquare(), KullbackLeibler()])
def test_a_layer_of_zeros_has_the_range_zero(choice):
    histogram = seen([0.0, 0.0])
    assert histogram.range(choice.threshold(histogram, lambda v, t: v.clamp(-t, t))) == (0.0, 0.0)


def test_what_has_no_range_names_the_layer():
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="layer 'conv' gave NaN or infinity on a calibration batch"):
            seen([1.0, bad])
    with pytest.raises(ValueError, match="percent=0"):
        Percentile(0)
