"""The convergence that Carson and Higham's theory gives for factors in half and refinement in double."""

import numpy as np
import pytest

from shoestring.numbers.arithmetic import Arithmetic
from shoestring.numbers.formats import named_format
from shoestring.numbers.linear_algebra import backward_error
from shoestring.numbers.refinement import gmres_refinement, iterative_refinement
from shoestring.numbers.rounder import Rounder

HALF = Arithmetic(Rounder(named_format("half")))


def system(cond, n=60, seed=0):
    generator = np.random.default_rng(seed)
    u, v = (np.linalg.qr(generator.standard_normal((n, n)))[0] for _ in range(2))
    return (u * np.logspace(0, -np.log10(cond), n)) @ v.T, generator.standard_normal(n)


def test_a_well_conditioned_system_is_refined_to_double_by_both():
    a, b = system(1e2)
    for refine in (iterative_refinement, gmres_refinement):
        found = refine(a, b, HALF, tolerance=1e-15)
        assert found.solution.converged
        assert backward_error(a, found.start, b) > 1e-6
        np.testing.assert_allclose(found.solution.x, np.linalg.solve(a, b), rtol=1e-9)
        assert found.solution.errors[-1] == backward_error(a, found.solution.x, b)


def test_beyond_the_reach_of_plain_refinement_gmres_still_converges():
    a, b = system(1e5)
    plain, krylov = (f(a, b, HALF, tolerance=1e-15) for f in (iterative_refinement, gmres_refinement))
    assert not plain.solution.converged
    assert krylov.solution.converged
    assert krylov.inner_steps > krylov.solution.steps
    np.testing.assert_array_equal(plain.start, krylov.start)


def test_a_tiny_right_hand_side_does_not_vanish_in_half():
    a, b = system(10.0)
    found = iterative_refinement(a, 1e-30 * b, HALF, tolerance=1e-15)
    assert found.solution.converged
    np.testing.assert_allclose(found.solution.x, np.linalg.solve(a, 1e-30 * b), rtol=1e-10)


def test_a_zero_right_hand_side():
    a, b = system(10.0, n=5)
    with np.errstate(invalid="ignore"):
        assert (iterative_refinement(a, 0 * b, HALF, tolerance=1e-15).solution.x == 0).all()


def test_a_matrix_that_half_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="scale the matrix"):
        gmres_refinement(1e6 * np.eye(3), np.ones(3), HALF, tolerance=1e-15)
