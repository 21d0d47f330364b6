from fractions import Fraction

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers.arithmetic import Arithmetic
from shoestring.numbers.formats import FloatFormat, named_format
from shoestring.numbers.linear_algebra import (
    backward_error,
    backward_substitution,
    cholesky,
    dot,
    forward_substitution,
    lu_factor,
    multiply,
    norm,
)
from shoestring.numbers.naive_rounding import naive_round_to_format
from shoestring.numbers.rounder import Rounder

NATIVE = Arithmetic(None)
HALF = Arithmetic(Rounder(named_format("half")))


def system(n, seed, cond=10.0):
    """A random matrix with logarithmically spaced singular values from 1 to 1/cond, and a right-hand side."""
    generator = np.random.default_rng(seed)
    u, v = (np.linalg.qr(generator.standard_normal((n, n)))[0] for _ in range(2))
    return (u * np.logspace(0, -np.log10(cond), n)) @ v.T, generator.standard_normal(n)


def rounded(value, fmt):
    """An exact rational of modest size, rounded through a float wide enough for the products of `fmt`."""
    wide = float(value)
    assert Fraction(wide) == value
    return Fraction(naive_round_to_format(wide, fmt))


def scalar_lu(a, fmt):
    """The textbook loop in rationals, every product and difference rounded; quotients in float64 first."""
    a = [[Fraction(naive_round_to_format(float(x), fmt)) for x in row] for row in a]
    order = list(range(len(a)))
    for k in range(len(a)):
        p = max(range(k, len(a)), key=lambda i: (abs(a[i][k]), -i))
        a[k], a[p], order[k], order[p] = a[p], a[k], order[p], order[k]
        for i in range(k + 1, len(a)):
            a[i][k] = Fraction(naive_round_to_format(float(a[i][k]) / float(a[k][k]), fmt))
            for j in range(k + 1, len(a)):
                a[i][j] = rounded(a[i][j] - rounded(a[i][k] * a[k][j], fmt), fmt)
    return np.array([[float(x) for x in row] for row in a]), order


@given(
    n=st.integers(1, 7),
    fmt=st.sampled_from([named_format("half"), FloatFormat(6, 3)]),
    seed=st.integers(0, 999),
)
def test_lu_rounds_every_operation_as_the_scalar_loop_does(n, fmt, seed):
    a, _ = system(n, seed)
    factors, order = scalar_lu(a, fmt)
    lu = lu_factor(a, Arithmetic(Rounder(fmt)))
    np.testing.assert_array_equal(lu.permutation, order)
    np.testing.assert_array_equal(lu.factors, factors)


@given(n=st.integers(1, 30), seed=st.integers(0, 999))
def test_lu_in_the_carrier_is_lapacks(n, seed):
    a, b = system(n, seed)
    lu = lu_factor(a, NATIVE)
    lower, upper = np.tril(lu.factors, -1) + np.eye(n), np.triu(lu.factors)
    np.testing.assert_allclose(lower @ upper, a[lu.permutation], atol=1e-13)
    np.testing.assert_allclose(lu.factors, scipy.linalg.lu_factor(a)[0], atol=1e-12)
    np.testing.assert_allclose(lu.solve(b, NATIVE), np.linalg.solve(a, b), rtol=1e-9, atol=1e-10)


@given(n=st.integers(1, 30), seed=st.integers(0, 999))
def test_lu_in_half_has_the_backward_error_of_half(n, seed):
    a, b = system(n, seed)
    b = HALF.round(b)
    x = lu_factor(a, HALF).solve(b, HALF)
    np.testing.assert_array_equal(x, HALF.round(x))
    unit = named_format("half").unit_roundoff
    assert backward_error(a, x, b) <= 4 * n * unit


@given(n=st.integers(1, 20), seed=st.integers(0, 999))
def test_cholesky(n, seed):
    a, _ = system(n, seed)
    a = a @ a.T + 0.1 * np.eye(n)
    np.testing.assert_allclose(cholesky(a, NATIVE), np.linalg.cholesky(a), atol=1e-12)
    low = cholesky(a, HALF)
    np.testing.assert_array_equal(low, HALF.round(low))
    np.testing.assert_array_equal(low, np.tril(low))
    unit = named_format("half").unit_roundoff
    assert np.abs(low @ low.T - a).max() <= 2 * (n + 2) * unit * np.abs(a).max()


@given(n=st.integers(1, 20), seed=st.integers(0, 999))
def test_triangular_solves(n, seed):
    generator = np.random.default_rng(seed)
    lower = np.tril(generator.uniform(-1, 1, (n, n)) / n) + np.eye(n)
    b = generator.standard_normal(n)
    np.testing.assert_allclose(lower @ forward_substitution(lower, b, NATIVE), b, atol=1e-12)
    np.testing.assert_allclose(lower.T @ backward_substitution(lower.T, b, NATIVE), b, atol=1e-12)
    unit = np.tril(lower, -1) + np.eye(n)
    stored = lower + np.triu(np.ones((n, n)), 1)  # what lies above the diagonal must not matter
    np.testing.assert_allclose(
        unit @ forward_substitution(stored, b, NATIVE, unit_diagonal=True), b, atol=1e-12
    )


def test_products_and_norms_round_every_operation():
    x = np.array([1.0, 2.0**-11, 2.0**-11])  # each addend alone is lost, both together would not be
    ones = np.ones(3)
    assert dot(x, ones, HALF) == 1.0
    assert dot(x, ones, NATIVE) == 1 + 2.0**-10
    np.testing.assert_array_equal(multiply(x[None, :], ones, HALF), [1.0])
    assert norm(np.array([3.0, 4.0]), HALF) == 5.0


def test_backward_error_of_an_exact_and_of_a_lost_solution():
    a = np.array([[2.0, 0.0], [0.0, 4.0]])
    assert backward_error(a, np.array([1.0, 1.0]), np.array([2.0, 4.0])) == 0
    assert backward_error(a, np.array([1.0, 1.0]), np.array([2.0, 5.0])) == 1 / (4 * 1 + 5)
    assert np.isnan(backward_error(a, np.array([np.inf, 1.0]), np.array([2.0, 4.0])))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lu_factor(np.ones((2, 3)), HALF), r"shape \(2, 3\) is not square"),
        (lambda: lu_factor(np.ones((2, 2)), HALF), "column 1 has no pivot: the matrix is singular"),
        (lambda: lu_factor(1e5 * np.eye(2), HALF), "the matrix overflow.*scale the matrix"),
        (lambda: lu_factor(np.array([[1.0, 6e4], [-1.0, 6e4]]), HALF), "the LU factors overflow"),
        (lambda: lu_factor(np.eye(2, dtype=np.float32), Arithmetic(Rounder(FloatFormat(5, 12)))), "t=13"),
        (lambda: cholesky(-np.eye(2), HALF), "pivot 0 is -1: the matrix is not positive definite"),
        (lambda: backward_substitution(np.zeros((2, 2)), np.ones(2), HALF), "diagonal entry 0 is 0"),
        (lambda: forward_substitution(np.diag([1.0, 0.0]), np.ones(2), HALF), "diagonal entry 1 is 0"),
    ],
)
def test_bad_matrices_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
