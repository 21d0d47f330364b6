"""The experiment behind the card of Tilus, and what it says of wrong or slow products."""

import pytest
import torch

from shoestring.systems import tilus
from shoestring.yardstick.timing import InterleavedTimes


def times(**seconds):
    rounds = {name: (value,) * 3 for name, value in seconds.items()}
    return InterleavedTimes(seconds=rounds, inner=dict.fromkeys(rounds, 1), threads=1, seed=0)


def test_the_slowest_type_answers_for_all():
    measured = {
        "u2": times(ours=1.0, f32=10.0),
        "u5": times(ours=2.0, f32=10.0),
        "u4": times(ours=3.0, f32=20.0),
    }
    row = tilus._slowest(tilus.SMALL_SINGLE, measured, "f32")
    assert row.ratio == pytest.approx(0.2)
    assert row.against == "torch f32, u5"
    assert tilus._spread(measured).method == pytest.approx(2.0)


def test_a_wrong_product_shows_in_the_row_of_exactness(monkeypatch):
    assert tilus._largest_error(smoke=True) < 1e-6
    right = tilus.packed_linear
    monkeypatch.setattr(tilus, "packed_linear", lambda *given: right(*given) * (1 + 1e-3))
    assert tilus._largest_error(smoke=True) > 5e-4


def test_copies_exceed_twice_the_cache_and_random_bytes_are_codes():
    work = tilus.Work(64, 128, 128, 3, 10_000)
    packed = tilus._random_weights("u3", work, torch.Generator().manual_seed(0))
    assert sum(weights.data.nbytes for weights in packed) > 20_000
    codes = packed[0].codes()
    assert codes.shape == (64, 128)
    assert set(codes.unique().tolist()) == set(range(8))
