from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers import FixedPointFormat, Rounder, Rounding, random_words, round_to_fixed_point
from shoestring.numbers.fixed_point import naive_round_to_fixed_point


@given(
    int_bits=st.integers(1, 12),
    frac_bits=st.integers(0, 12),
    mode=st.sampled_from(list(Rounding)),
    values=st.lists(st.floats(width=32), min_size=1, max_size=12),
    steps=st.integers(-(2**14), 2**14),
)
def test_every_mode_equals_the_definition(int_bits, frac_bits, mode, values, steps):
    fmt = FixedPointFormat(int_bits, frac_bits)
    quarters = [steps * fmt.resolution / 4, fmt.xmax, fmt.xmax + fmt.resolution / 2, fmt.xmin, fmt.xmin * 2]
    x = np.float32(values + quarters)
    draws = random_words(len(x), 3) >> 1
    expected = [
        naive_round_to_fixed_point(float(value), fmt, mode, draw=Fraction(int(draw), 1 << 31))
        for value, draw in zip(x, draws, strict=True)
    ]
    rounded = round_to_fixed_point(x, fmt, mode, seed=3)
    assert np.array_equal(rounded, np.float32(expected), equal_nan=True)
    assert not np.signbit(rounded[rounded == 0]).any()
    on_torch = round_to_fixed_point(torch.from_numpy(x), fmt, mode, seed=3)
    assert np.array_equal(on_torch.numpy(), rounded, equal_nan=True)
    wide = round_to_fixed_point(x.astype(np.float64), fmt, mode, seed=3)
    assert np.array_equal(wide, rounded.astype(np.float64), equal_nan=True)


def test_ties_range_and_special_values():
    fmt = FixedPointFormat(3, 1)
    x = torch.tensor([0.25, 0.75, -0.25, -0.75, 9.0, -9.0, torch.inf, -torch.inf, torch.nan])
    even = round_to_fixed_point(x, fmt)
    assert even[:-1].tolist() == [0, 1, 0, -1, 3.5, -4, 3.5, -4]
    assert even[-1].isnan()
    assert round_to_fixed_point(x, fmt, Rounding.NEAREST_ODD)[:4].tolist() == [0.5, 0.5, -0.5, -0.5]
    assert torch.equal(Rounder(fmt, Rounding.NEAREST_ODD)(x)[:4], torch.tensor([0.5, 0.5, -0.5, -0.5]))


def test_bad_input():
    with pytest.raises(ValueError, match="int_bits=0"):
        FixedPointFormat(0, 3)
    with pytest.raises(ValueError, match="frac_bits=-1"):
        FixedPointFormat(3, -1)
    with pytest.raises(ValueError, match="at most 54 bits"):
        FixedPointFormat(30, 30)
    with pytest.raises(ValueError, match=r"Q\(20, 10\) has 30 bits; a float32 array holds at most 25"):
        round_to_fixed_point(torch.ones(2), FixedPointFormat(20, 10))
    with pytest.raises(TypeError, match="cast explicitly"):
        round_to_fixed_point(torch.ones(2, dtype=torch.int32), FixedPointFormat(4, 4))
    with pytest.raises(TypeError, match="float32 or float64, not torch.float16"):
        round_to_fixed_point(torch.ones(2, dtype=torch.float16), FixedPointFormat(4, 4))
