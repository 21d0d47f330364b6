"""Single operations and dot products, held to exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers.accumulation import EveryChunk, EveryFusedStep, EveryStep, InCarrier, matmul
from shoestring.numbers.arithmetic import Arithmetic, add_to_odd
from shoestring.numbers.exactness import check_exactness
from shoestring.numbers.fixed_point import FixedPointFormat
from shoestring.numbers.formats import FloatFormat, named_format
from shoestring.numbers.naive_rounding import floor_log2
from shoestring.numbers.rounder import Rounder
from shoestring.numbers.rounding_bits import DRAWING_MODES, Rounding

DETERMINISTIC = [mode for mode in Rounding if mode not in DRAWING_MODES and mode != Rounding.NEAREST_ODD]


def round_fraction(value: Fraction, fmt: FloatFormat, mode: Rounding) -> Fraction:
    """An exact rational rounded by its definition, within the range; not by way of any float."""
    if value == 0:
        return value
    exponent = max(floor_log2(abs(value)), fmt.emin)
    ulp = Fraction(2) ** (exponent - fmt.sig_bits)
    z = abs(value) / ulp
    low, rest = math.floor(z), z - math.floor(z)
    half = Fraction(1, 2)
    away = {
        Rounding.NEAREST_EVEN: rest > half or (rest == half and low % 2 == 1),
        Rounding.UP: rest > 0 and value > 0,
        Rounding.DOWN: rest > 0 and value < 0,
        Rounding.TOWARD_ZERO: False,
        Rounding.NEAREST_TO_ZERO: rest > half,
        Rounding.NEAREST_AWAY: rest >= half,
        Rounding.ODD: rest > 0 and low % 2 == 0,
    }[mode]
    return (low + away) * ulp * (1 if value > 0 else -1)


def numbers_of(fmt: FloatFormat, size: int, seed: int, spread: int) -> np.ndarray:
    """Random numbers of a format, exponents within ±spread, so that no product overflows."""
    generator = np.random.default_rng(seed)
    significands = generator.integers(1 << fmt.sig_bits, 2 << fmt.sig_bits, size).astype(np.float64)
    exponents = generator.integers(-spread, spread + 1, size) - fmt.sig_bits
    return np.ldexp(significands, exponents) * generator.choice([-1.0, 1.0], size)


FORMATS = [named_format("half"), FloatFormat(8, 7), FloatFormat(5, 2), FloatFormat(8, 23), FloatFormat(6, 0)]


@pytest.mark.parametrize("mode", DETERMINISTIC, ids=lambda mode: mode.name)
@given(fmt=st.sampled_from(FORMATS), seed=st.integers(0, 10**6))
def test_every_operation_is_correctly_rounded_in_every_mode(mode, fmt, seed):
    arithmetic = Arithmetic(Rounder(fmt, mode))
    arithmetic.check(np.float64)
    if fmt.sig_bits == 0 and mode in (Rounding.NEAREST_EVEN, Rounding.ODD):
        return  # the last bit of such a format is that of its exponent; its rounding is tested elsewhere
    a, b, c = (numbers_of(fmt, 20, seed + i, spread=4) for i in range(3))
    results = {
        "add": (arithmetic.add(a, b), lambda x, y, z: x + y),
        "subtract": (arithmetic.subtract(a, b), lambda x, y, z: x - y),
        "multiply": (arithmetic.multiply(a, b), lambda x, y, z: x * y),
        "divide": (arithmetic.divide(a, b), lambda x, y, z: x / y),
        "fma": (arithmetic.fma(a, b, c), lambda x, y, z: x * y + z),
    }
    for name, (result, exact) in results.items():
        for got, *operands in zip(result, a, b, c, strict=True):
            true = round_fraction(exact(*map(Fraction, operands)), fmt, mode)
            assert Fraction(got) == true, (name, operands)
    for got, x in zip(arithmetic.sqrt(abs(a)), abs(a), strict=True):
        assert is_rounded_root(Fraction(got), Fraction(x), fmt, mode), x


def is_rounded_root(root: Fraction, square: Fraction, fmt: FloatFormat, mode: Rounding) -> bool:
    """Compares squares, so that nothing irrational is ever formed."""
    ulp = Fraction(2) ** (max(floor_log2(root), fmt.emin) - fmt.sig_bits)
    if root * root == square:
        return True
    if mode in (Rounding.NEAREST_EVEN, Rounding.NEAREST_TO_ZERO, Rounding.NEAREST_AWAY):
        below = ulp / 2 if root / ulp != 1 << fmt.sig_bits else ulp / 4
        return (root - below) ** 2 <= square <= (root + ulp / 2) ** 2
    if mode == Rounding.UP:
        return root * root > square and (root - ulp) ** 2 < square
    if mode == Rounding.ODD:
        return (root / ulp) % 2 == 1 and (root - ulp) ** 2 < square < (root + ulp) ** 2
    return root * root < square < (root + ulp) ** 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(seed=st.integers(0, 10**6))
def test_a_sum_to_odd_is_exact_or_odd_and_next_to_the_exact_sum(dtype, seed):
    generator = np.random.default_rng(seed)
    a, b = (
        np.ldexp(generator.standard_normal(50), generator.integers(-40, 40, 50)).astype(dtype)
        for _ in range(2)
    )
    b[:5] = -a[:5]
    for x, y, total in zip(a, b, add_to_odd(a, b), strict=True):
        exact = Fraction(float(x)) + Fraction(float(y))
        if Fraction(float(total)) == exact:
            continue
        assert int(np.asarray(total).view(f"i{total.itemsize}")) % 2 == 1
        low, high = sorted([float(np.nextafter(total, dtype(s * np.inf))) for s in (-1, 1)])
        assert Fraction(low) < exact < Fraction(high)


def test_a_tiny_addend_is_seen_by_directed_rounding():
    one, tiny = np.array([1.0]), np.array([2.0**-60])
    up = Arithmetic(Rounder(FloatFormat(8, 7), Rounding.UP))
    down = Arithmetic(Rounder(FloatFormat(8, 7), Rounding.DOWN))
    assert up.add(one, tiny)[0] == 1 + 2.0**-7
    assert down.subtract(one, tiny)[0] == 1 - 2.0**-8


def test_a_fused_multiply_add_of_half_through_float32_rounds_once():
    fma_of_half = Arithmetic(Rounder(named_format("half")))
    s, a, b = (np.array([x], np.float32) for x in (1 + 2**-10, 2**-5 * (1 + 2**-10), 2**-6 * (1 - 2**-10)))
    exact = Fraction(float(a[0])) * Fraction(float(b[0])) + Fraction(float(s[0]))
    assert Fraction(float(fma_of_half.fma(a, b, s)[0])) == round_fraction(
        exact, named_format("half"), Rounding.NEAREST_EVEN
    )
    assert np.float16(np.float32(a * b + s))[0] != fma_of_half.fma(a, b, s)[0]  # what a plain carrier gives


def test_infinities_and_nans_pass():
    half = Arithmetic(Rounder(named_format("half")))
    infinite = np.array([np.inf, -np.inf, np.nan, 65504.0])
    np.testing.assert_array_equal(half.add(infinite, infinite), [np.inf, -np.inf, np.nan, np.inf])
    np.testing.assert_array_equal(half.divide(np.array([1.0, 0.0]), np.array([0.0, 0.0])), [np.inf, np.nan])


def scalar_dot(a, b, fmt, mode, fused=False):
    """The slow loop: every product and every sum an exact rational, rounded by the definition."""
    total = Fraction(0)
    for x, y in zip(a, b, strict=True):
        product = Fraction(float(x)) * Fraction(float(y))
        if not fused:
            product = round_fraction(product, fmt, mode)
        total = round_fraction(total + product, fmt, mode)
    return total


@pytest.mark.parametrize("mode", [Rounding.NEAREST_EVEN, Rounding.UP, Rounding.TOWARD_ZERO])
@given(
    t=st.integers(2, 11),
    k=st.integers(1, 40),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 10**6),
)
def test_a_dot_product_rounded_at_every_step_equals_the_scalar_loop(mode, t, k, dtype, seed):
    fmt = FloatFormat(6, t - 1)
    arithmetic = Arithmetic(Rounder(fmt, mode))
    arithmetic.check(dtype)
    a, b = (numbers_of(fmt, k, seed + i, spread=2).astype(dtype) for i in range(2))
    stepped = matmul(a, b, arithmetic, EveryStep())
    fused = matmul(a, b, arithmetic, EveryFusedStep())
    assert Fraction(float(stepped)) == scalar_dot(a, b, fmt, mode)
    assert Fraction(float(fused)) == scalar_dot(a, b, fmt, mode, fused=True)


@given(
    m=st.integers(1, 4),
    k=st.integers(1, 9),
    n=st.integers(1, 4),
    chunk=st.integers(1, 10),
    seed=st.integers(0, 99),
)
def test_a_chunked_product_rounds_each_chunk_and_each_sum(m, k, n, chunk, seed):
    fmt = FloatFormat(5, 3)
    rounder = Rounder(fmt)
    a, b = numbers_of(fmt, m * k, seed, 2).reshape(m, k), numbers_of(fmt, k * n, seed + 1, 2).reshape(k, n)
    expected = np.zeros((m, n))
    for start in range(0, k, chunk):
        expected = rounder(expected + rounder(a[:, start : start + chunk] @ b[start : start + chunk]))
    np.testing.assert_array_equal(matmul(a, b, Arithmetic(rounder), EveryChunk(chunk)), expected)
    whole = matmul(a, b, Arithmetic(rounder), InCarrier())
    np.testing.assert_array_equal(whole, rounder(a @ b))
    np.testing.assert_array_equal(matmul(a, b, Arithmetic(rounder), EveryChunk(k)), whole)


def test_the_ways_of_accumulation_differ():
    fmt = FloatFormat(5, 2)
    a, b = numbers_of(fmt, 64, 0, 1), np.abs(numbers_of(fmt, 64, 1, 1))
    ways = [InCarrier(), EveryStep(), EveryFusedStep(), EveryChunk(8)]
    results = {float(matmul(np.abs(a), b, Arithmetic(Rounder(fmt)), way)) for way in ways}
    assert len(results) >= 3


@pytest.mark.parametrize("way", [InCarrier(), EveryStep(), EveryFusedStep(), EveryChunk(3)])
@pytest.mark.parametrize(
    ("shape_a", "shape_b"),
    [
        ((5,), (5,)),
        ((2, 5), (5,)),
        ((5,), (5, 3)),
        ((2, 5), (5, 3)),
        ((4, 2, 5), (4, 5, 3)),
        ((2, 0), (0, 3)),
    ],
)
def test_shapes_are_those_of_numpy_and_libraries_agree(way, shape_a, shape_b):
    generator = np.random.default_rng(0)
    rounder = Rounder(FloatFormat(5, 4))
    a, b = rounder(generator.standard_normal(shape_a)), rounder(generator.standard_normal(shape_b))
    product = matmul(a, b, Arithmetic(rounder), way)
    assert product.shape == (a @ b).shape
    in_torch = matmul(torch.from_numpy(a), torch.from_numpy(b), Arithmetic(rounder), way)
    np.testing.assert_array_equal(in_torch.numpy(), product)


def test_shapes_that_do_not_match_are_named():
    with pytest.raises(ValueError, match=r"\(2, 3\) and b of shape \(4, 5\)"):
        matmul(np.ones((2, 3)), np.ones((4, 5)), Arithmetic(None), InCarrier())
    with pytest.raises(ValueError, match="size=0"):
        EveryChunk(0)


@pytest.mark.parametrize(
    ("rounder", "dtype", "message"),
    [
        (
            Rounder(FloatFormat(5, 11)),
            np.float32,
            r"t=12 .* float32: its 24 bits suffice for t <= 11.*use float64",
        ),
        (Rounder(FloatFormat(8, 25)), np.float64, r"t=26 .* float64: its 53 bits suffice for t <= 25"),
        (Rounder(named_format("single"), Rounding.UP), np.float32, "t=24"),
        (Rounder(FloatFormat(8, 7), Rounding.UP), np.float32, "overflow or vanish in float32 before mode UP"),
        (Rounder(FloatFormat(8, 7, saturate=True)), np.float32, "overflow or vanish"),
        (Rounder(FloatFormat(8, 10)), np.float32, "overflow or vanish"),
        (Rounder(FixedPointFormat(10, 20)), np.float64, "t=30"),
    ],
)
def test_a_carrier_that_is_too_narrow_is_refused(rounder, dtype, message):
    with pytest.raises(ValueError, match=message):
        check_exactness(rounder, np.dtype(dtype))


@pytest.mark.parametrize(
    ("rounder", "dtype"),
    [
        (Rounder(named_format("half")), "float32"),
        (Rounder(named_format("half"), Rounding.UP), "float32"),
        (Rounder(FloatFormat(8, 7)), "float32"),
        (Rounder(FloatFormat(8, 7), Rounding.UP), "float64"),
        (Rounder(named_format("single"), Rounding.DOWN), "float64"),
        (Rounder(named_format("single")), "float32"),
        (Rounder(named_format("double")), "torch.float64"),
        (np.rint, "float32"),
    ],
)
def test_a_carrier_that_suffices_is_taken(rounder, dtype):
    check_exactness(rounder, dtype)


@given(seed=st.integers(0, 10**6))
def test_bfloat16_through_float32_agrees_with_float64_down_to_its_smallest_numbers(seed):
    """The range of float32 is that of bfloat16; rounding to nearest must not notice."""
    generator = np.random.default_rng(seed)
    arithmetic = Arithmetic(Rounder(FloatFormat(8, 7)))
    a, b = (
        arithmetic.round(np.ldexp(generator.uniform(1, 2, 300), generator.integers(-133, 128, 300)))
        for _ in range(2)
    )
    b[:150] = arithmetic.round(np.ldexp(generator.uniform(1, 2, 150), -133) / a[:150])
    b[:50][~np.isfinite(b[:50])] = 1.0
    with np.errstate(all="ignore"):
        for operation in (arithmetic.add, arithmetic.multiply, arithmetic.divide):
            narrow = operation(a.astype(np.float32), b.astype(np.float32))
            np.testing.assert_array_equal(narrow.astype(np.float64), operation(a, b))
