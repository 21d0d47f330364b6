"""The top-k engine against sorting and torch, and its cycles against the published ones."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.kernels.top_k_engine import (
    bitonic_cycles,
    compact,
    eliminate_zeros,
    kth_largest,
    mean_cycles,
    naive_top_k,
    top_k_engine,
)

REFERENCE = [(64, 16, 36), (256, 32, 74), (1024, 64, 190), (1024, 512, 270), (4096, 32, 570)]
"""n, k and mean cycles of the search with 16 comparators."""


def arrays():
    draws = np.random.default_rng(0)
    for trial in range(1000):
        n = int(draws.integers(1, 50))
        kind = trial % 4
        x = draws.standard_normal(n) if kind == 0 else draws.integers(0, [1, 3, 9][kind - 1], n).astype(float)
        yield x, int(draws.integers(1, n + 1)), draws


def test_it_gives_the_values_of_topk_in_the_order_they_came():
    for x, k, draws in arrays():
        found = top_k_engine(x, k, seed=draws)
        expected = torch.from_numpy(x).topk(k).values
        assert torch.equal(torch.from_numpy(x[found.index]).sort(descending=True).values, expected)
        assert found.index.tolist() == naive_top_k(x, k)
        assert found.kth.value == expected[-1]
        assert found.kth.greater == (x > found.kth.value).sum()


def test_negative_zero_is_zero():
    assert top_k_engine(np.array([-0.0, 0.0, 0.0]), 2).index.tolist() == [0, 1]


@given(keep=st.lists(st.booleans(), max_size=70), lanes=st.sampled_from([1, 2, 5, 16]))
def test_the_zero_eliminator_keeps_what_is_marked(keep, lanes):
    x, marks = np.arange(len(keep)), np.array(keep, dtype=bool)
    assert compact(x, marks, lanes).tolist() == x[marks].tolist()
    row, count = eliminate_zeros(x, marks)
    assert row[:count].tolist() == x[marks].tolist()


@pytest.mark.parametrize(("n", "k", "cycles"), REFERENCE)
def test_cycles_of_the_search(n, k, cycles):
    search, filtering = mean_cycles(n, k, trials=150)
    assert search == pytest.approx(cycles, rel=0.1)
    assert filtering == n // 16


def test_cycles_of_a_sorter_and_of_one_comparator():
    assert bitonic_cycles(1024) == 1760
    one, _ = mean_cycles(1024, 64, comparators=1)
    many, _ = mean_cycles(1024, 64)
    assert one / many > 8


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: kth_largest(np.ones(3), 4), ValueError, "k=4 must be from 1 to the 3 values"),
        (lambda: top_k_engine(np.ones(3), 0), ValueError, "k=0"),
        (lambda: kth_largest(np.ones(3), 1, comparators=0), ValueError, "comparators=0"),
        (lambda: kth_largest(np.array([1.0, np.nan]), 1), FloatingPointError, "NaN"),
        (lambda: bitonic_cycles(0), ValueError, "n=0"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
