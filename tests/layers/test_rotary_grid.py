"""Rotations by row and column: products depend on distances alone, lengths stay."""

import pytest
import torch

from shoestring.layers.rotary_grid import rotate_grid


def test_products_depend_on_the_distance_in_rows_and_columns():
    torch.manual_seed(0)
    a, b = torch.randn(2, 8, dtype=torch.float64)
    grid = (5, 7)
    rotated_a, rotated_b = (rotate_grid(v.expand(1, 35, 8), grid)[0].unflatten(0, grid) for v in (a, b))

    def product(at, other):
        return rotated_a[at] @ rotated_b[other]

    torch.testing.assert_close(product((0, 0), (2, 3)), product((1, 2), (3, 5)))
    torch.testing.assert_close(product((3, 4), (1, 1)), product((4, 6), (2, 3)))
    assert not torch.isclose(product((0, 0), (2, 3)), product((0, 0), (3, 2)))
    torch.testing.assert_close(rotated_a.norm(dim=-1), a.norm().expand(grid))
    torch.testing.assert_close(rotated_a[0, 0], a)


def test_bad_input():
    with pytest.raises(ValueError, match="dim=6: .* a multiple of 4"):
        rotate_grid(torch.zeros(1, 4, 6), (2, 2))
    with pytest.raises(ValueError, match="4 patches are no grid of 2 x 3"):
        rotate_grid(torch.zeros(1, 4, 8), (2, 3))
