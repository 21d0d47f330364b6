import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.errors import LayoutError
from shoestring.kernels.tile.memory_layout import (
    SharedLayout,
    Swizzle,
    column_major,
    row_major,
    swizzled_row_major,
)


def test_row_and_column_major():
    assert row_major(2, 3, 4).offset_of((1, 2, 3)) == 23
    assert column_major(2, 3, 4).offset_of((1, 2, 3)) == 23
    assert column_major(2, 3, 4).offset_of((1, 0, 0)) == 1
    assert np.array_equal(row_major(5, 7).offset_table, np.arange(35).reshape(5, 7))


def test_modes_of_a_dimension_may_have_any_strides():
    layout = SharedLayout((4, 2), (2, 2, 2), (1, 4, 2))
    assert layout.offset_table.tolist() == [[0, 2], [4, 6], [1, 3], [5, 7]]
    assert layout.size == 8


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("runs", [2, 4, 8, 16])
def test_swizzle_spreads_columns_over_the_banks(bits, runs):
    run = 128 // bits
    layout = swizzled_row_major(16, runs * run, bits=bits)
    offsets = layout.offset_table
    assert sorted(offsets.reshape(-1).tolist()) == list(range(16 * runs * run))
    starts = offsets[:, ::run]
    assert np.array_equal(offsets, (starts[:, :, None] + np.arange(run)).reshape(offsets.shape))
    plain = row_major(16, runs * run).offset_table[:, ::run]
    for column in range(runs):
        for first in (0, 8):  # eight rows of 16 bytes must fill the 128 bytes of all banks
            assert len(set((starts[first : first + 8, column] // run % 8).tolist())) == 8
            assert len(set((plain[first : first + 8, column] // run % 8).tolist())) < 8


def test_swizzle_where_it_cannot_help_is_plain():
    assert swizzled_row_major(8, 4, bits=16) == row_major(8, 4)
    assert swizzled_row_major(8, 24, bits=16) == row_major(8, 24)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Swizzle(0b110, 1), "overlaps the bits"),
        (lambda: Swizzle(-1, 1), "overlaps"),
        (lambda: SharedLayout((4,), (2,), (1,)), "do not multiply"),
        (lambda: SharedLayout((4,), (2, 2), (1,)), "2 modes but 1 strides"),
        (lambda: SharedLayout((4,), (2, 2), (1, 1)), "two elements share a place"),
        (lambda: SharedLayout((2,), (2,), (-1,)), "before the start"),
        (lambda: SharedLayout((4, 3), (4, 3), (2, 2)), "two elements share a place"),
    ],
)
def test_bad_layouts(call, message):
    with pytest.raises(LayoutError, match=message):
        call()


@given(st.permutations([(2, 1), (3, 2), (4, 6)]), st.lists(st.integers(0, 7), min_size=3, max_size=3))
def test_layouts_are_accepted_exactly_when_places_differ(modes, more):
    sizes = tuple(size for size, _ in modes)
    strides = tuple(stride + extra for (_, stride), extra in zip(modes, more, strict=True))
    places = {sum(i * s for i, s in zip(index, strides, strict=True)) for index in np.ndindex(*sizes)}
    if len(places) == 24:
        assert SharedLayout(sizes, sizes, strides).size == max(places) + 1
    else:
        with pytest.raises(LayoutError, match="share a place"):
            SharedLayout(sizes, sizes, strides)
