"""Fixed point modulo 2^64: encoding, wrap-around products by limbs, and truncation of shares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers.ring import (
    SMALL_MATMUL,
    RingFormat,
    naive_ring_matmul,
    ring_matmul,
    shift_right,
    truncate_first,
    truncate_second,
)

SIZES = st.sampled_from([1, 2, 3, 7, 13, 31])


def words(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << 64, shape, dtype=np.uint64)


@given(st.floats(-1e8, 1e8), st.integers(1, 16))
def test_numbers_come_back_within_half_a_unit(x, frac_bits):
    form = RingFormat(frac_bits)
    assert abs(float(form.decode(form.encode(x))) - x) <= 2.0 ** -(frac_bits + 1) + 1e-8


@given(SIZES, SIZES, SIZES, st.integers(0, 9))
def test_products_by_limbs_wrap_around_as_integers_do(rows, inner, columns, seed):
    a, b = words(40, rows, inner, seed=seed), words(40, inner, columns, seed=seed + 1)
    assert np.array_equal(ring_matmul(a, b), naive_ring_matmul(a, b))


def test_large_products_are_exact():
    a, b = words(3, 37, 129), words(129, 53)
    assert SMALL_MATMUL < 3 * 37 * 129 * 53
    exact = np.array(a.astype(object) @ b.astype(object)) % (1 << 64)
    assert np.array_equal(ring_matmul(a, b), exact.astype(np.uint64))
    full = np.full((64, 1024), (1 << 64) - 1, dtype=np.uint64)
    assert np.array_equal(ring_matmul(full, full.T), naive_ring_matmul(full, full.T))


@given(st.integers(-(1 << 40), 1 << 40), st.integers(0, (1 << 64) - 1), st.integers(1, 20))
def test_truncated_shares_sum_to_the_truncated_value_within_one(x, mask, bits):
    # Shares within |x| of a sign change fail, which is the failure that the documentation names.
    near = min(mask % (1 << 63), -mask % (1 << 63))
    if near <= 1 << 41:
        return
    value = np.array([x % (1 << 64)], dtype=np.uint64)
    second = np.array([mask], dtype=np.uint64)
    total = truncate_first(value - second, bits) + truncate_second(second, bits)
    assert abs(int(total.view(np.int64)[0]) - (x >> bits)) <= 1


def test_shifts_keep_the_sign():
    assert shift_right(np.array([-5 % (1 << 64)], dtype=np.uint64), 1).view(np.int64).tolist() == [-3]


def test_bad_input_is_refused():
    form = RingFormat(16)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinities"):
            form.encode([0.0, bad])
    assert form.limit() == 2.0**31
    assert form.limit(1024) == 2.0**21
    form.encode(2.0**21 - 1, inner=1024)
    with pytest.raises(OverflowError, match="1024 terms: must stay below"):
        form.encode(2.0**21, inner=1024)
    with pytest.raises(OverflowError):
        form.encode(-(2.0**31))
    with pytest.raises(ValueError, match="frac_bits=31"):
        RingFormat(31)
