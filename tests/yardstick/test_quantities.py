"""Figures as they are printed."""

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from shoestring.yardstick.quantities import format_quantity, format_ratio, three_digits


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "B", "0 B"),
        (1023, "B", "1 023 B"),
        (1536, "B", "1.50 KiB"),
        (64 * 2**20, "B", "64 MiB"),
        (3.25 * 2**30, "B", "3.25 GiB"),
        (0.25, "s", "250 ms"),
        (0.00123, "s", "1.23 ms"),
        (4.2e-7, "s", "420 ns"),
        (75.0, "s", "75 s"),
        (2.5e9, "FLOP", "2.50 GFLOP"),
        (2.5e12, "FLOP/s", "2.50 TFLOP/s"),
        (87.3, "%", "87.3 %"),
        (12.3456, "", "12.3"),
        (1e-9, "", "1.00e-09"),
        (-0.5, "%", "-0.500 %"),
        (None, "B", "–"),
        (math.nan, "s", "NaN s"),
        (-math.inf, "", "−∞"),
    ],
)
def test_quantities(value, unit, text):
    assert format_quantity(value, unit) == text


def test_ratios():
    assert [format_ratio(v) for v in (0.25, 1.0, 13.4, math.inf, math.nan, None)] == [
        "0.250×", "1×", "13.4×", "∞×", "NaN×", "–",
    ]  # fmt: skip


@given(st.floats(1e-12, 1e15))
def test_three_digits_tell_the_number_to_half_a_percent(value):
    assert float(three_digits(value).replace(" ", "")) == pytest.approx(value, rel=0.00501)
