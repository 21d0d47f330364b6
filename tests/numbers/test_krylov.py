import numpy as np
import pytest
import scipy.sparse.linalg
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers.arithmetic import Arithmetic
from shoestring.numbers.formats import FloatFormat
from shoestring.numbers.krylov import gmres
from shoestring.numbers.linear_algebra import lu_factor
from shoestring.numbers.rounder import Rounder

NATIVE = Arithmetic(None)


def system(n, seed):
    generator = np.random.default_rng(seed)
    return np.eye(n) + generator.standard_normal((n, n)) / (2 * np.sqrt(n)), generator.standard_normal(n)


@given(n=st.integers(1, 25), seed=st.integers(0, 999))
def test_it_solves_within_n_steps(n, seed):
    a, b = system(n, seed)
    found = gmres(a, b, tolerance=1e-12, max_steps=n)
    assert found.converged
    assert found.steps <= n
    np.testing.assert_allclose(found.x, np.linalg.solve(a, b), rtol=1e-8, atol=1e-9)


@given(steps=st.integers(1, 12), seed=st.integers(0, 99))
def test_each_step_minimises_the_residual_as_scipys_does(steps, seed):
    a, b = system(20, seed)
    found = gmres(a, b, tolerance=0.0, max_steps=steps)
    reference, _ = scipy.sparse.linalg.gmres(a, b, rtol=0.0, atol=0.0, restart=steps, maxiter=1)
    np.testing.assert_allclose(found.x, reference, rtol=1e-8, atol=1e-10)
    assert found.errors[-1] == pytest.approx(np.linalg.norm(b - a @ found.x) / np.linalg.norm(b), rel=1e-6)
    assert (np.diff(found.errors) <= 1e-12).all()


def test_a_perfect_preconditioner_needs_one_step():
    a, b = system(15, 0)
    lu = lu_factor(a, NATIVE)
    found = gmres(a, b, tolerance=1e-10, max_steps=15, precondition=lambda v: lu.solve(v, NATIVE))
    assert found.steps == 1
    np.testing.assert_allclose(a @ found.x, b, atol=1e-10)


def test_a_function_serves_as_a_matrix():
    a, b = system(8, 1)
    np.testing.assert_array_equal(
        gmres(lambda v: a @ v, b, tolerance=1e-9, max_steps=8).x, gmres(a, b, tolerance=1e-9, max_steps=8).x
    )


def test_rounded_to_a_format_it_reaches_that_formats_accuracy_and_no_more():
    a, b = system(8, 2)
    errors = {}
    for sig_bits in (7, 15):
        ops = Arithmetic(Rounder(FloatFormat(8, sig_bits)))
        x = gmres(a, b, tolerance=1e-12, max_steps=8, arithmetic=ops).x
        np.testing.assert_array_equal(x, ops.round(x))
        errors[sig_bits] = np.linalg.norm(b - a @ x) / np.linalg.norm(b)
        assert 2.0 ** -(sig_bits + 6) < errors[sig_bits] < 2.0 ** -(sig_bits - 5)
    assert errors[7] > 16 * errors[15]


def test_a_zero_right_hand_side_and_an_exhausted_space():
    a, _ = system(5, 3)
    zero = gmres(a, np.zeros(5), tolerance=1e-9, max_steps=5)
    assert zero.converged
    assert (zero.x == 0).all()
    found = gmres(2 * np.eye(5), np.eye(5)[0], tolerance=0.0, max_steps=5)
    assert found.steps == 1
    np.testing.assert_array_equal(found.x, np.eye(5)[0] / 2)


def test_a_singular_system_ends_without_convergence():
    found = gmres(np.zeros((3, 3)), np.ones(3), tolerance=1e-9, max_steps=3)
    assert not found.converged
    assert np.isfinite(found.x).all()


def test_no_steps_is_refused():
    with pytest.raises(ValueError, match="max_steps=0"):
        gmres(np.eye(2), np.ones(2), tolerance=1e-9, max_steps=0)
