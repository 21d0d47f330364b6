"""Examples in rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data.packed_examples import block_diagonal, lay_out, pack_lengths


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_every_example_lies_in_one_row_with_positions_of_its_own(lengths):
    rows = pack_lengths(lengths, 10)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    laid = lay_out(rows, lengths, 10)
    assert (laid.pos < 0).equal(laid.example < 0)
    for r, numbers in enumerate(rows):
        for order, number in enumerate(numbers):
            assert laid.pos[r][laid.example[r] == order].tolist() == list(range(lengths[number]))
    assert int((laid.pos >= 0).sum()) == sum(lengths)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_a_place_sees_its_own_example_up_to_itself(lengths):
    laid = lay_out(pack_lengths(lengths, 10), lengths, 10)
    seen = block_diagonal(laid.example)[:, 0]
    for r in range(len(laid.pos)):
        for i in range(10):
            expected = [
                bool(laid.example[r, i] >= 0 and laid.example[r, i] == laid.example[r, j] and j <= i)
                for j in range(10)
            ]
            assert seen[r, i].tolist() == expected


def test_an_example_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="example 1 has 11 places"):
        pack_lengths([3, 11], 10)
    with pytest.raises(ValueError, match="example 0 has 0 places"):
        pack_lengths([0], 10)
    assert torch.equal(lay_out([[0]], [2], 3).pos, torch.tensor([[0, 1, -1]]))
