"""Top-k and top-mass against one choice at a time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.generation.selection import marked_slots, naive_top_k, naive_top_mass, top_k, top_mass

# Few different values, so that there are ties.
ROWS = st.lists(st.tuples(st.integers(-2, 2), st.booleans(), st.booleans()), max_size=23)


@given(row=ROWS, count=st.integers(0, 25))
def test_top_k_is_one_choice_after_the_other(row, count):
    scores = [float(s) for s, _, _ in row]
    protected, valid = [p for _, p, _ in row], [v for _, _, v in row]
    found = top_k(
        torch.tensor(scores), count, protected=torch.tensor(protected, dtype=torch.bool),
        valid=torch.tensor(valid, dtype=torch.bool),
    )  # fmt: skip
    assert found.tolist() == naive_top_k(scores, count, protected, valid)


@given(
    row=st.lists(st.integers(0, 3), min_size=1, max_size=23),
    share=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
)
def test_top_mass_is_the_fewest_that_hold_the_share(row, share):
    masses = [float(m) for m in row]
    found = top_mass(torch.tensor(masses), share)
    assert found.tolist() == naive_top_mass(masses, share)
    assert torch.tensor(masses)[found].sum() >= share * sum(masses)


def test_what_is_protected_counts_first():
    scores = torch.tensor([5.0, 4, 3, 2])
    safe = torch.tensor([False, False, False, True])
    assert top_k(scores, 2, protected=safe).tolist() == [True, False, False, True]
    assert top_k(scores, 0, protected=safe).tolist() == [False, False, False, True]
    assert top_mass(scores, 0.5, protected=safe).tolist() == [True, False, False, True]


def test_each_row_has_a_count_of_its_own():
    scores = torch.tensor([[1.0, 1, 1], [1, 2, 3]])
    assert top_k(scores, torch.tensor([2, 1])).tolist() == [[True, True, False], [False, False, True]]


@given(rows=st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=4))
def test_marked_slots_are_the_places_of_marks(rows):
    width = max(sum(row) for row in rows)
    expected = [[i for i, m in enumerate(row) if m] for row in rows]
    expected = [row + [-1] * (width - len(row)) for row in expected]
    assert marked_slots(torch.tensor(rows)).tolist() == expected


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: top_k(torch.ones(2), -1), ValueError, "count=-1 of scores"),
        (lambda: top_k(torch.ones(1, 2), torch.tensor([-3])), ValueError, "count=-3"),
        (lambda: top_mass(torch.ones(2), 1.5), ValueError, "share=1.5 of masses"),
        (lambda: top_mass(torch.tensor([-1.0]), 0.5), ValueError, "a mass is 0 or more"),
        (
            lambda: top_k(torch.tensor([torch.nan]), 1, what="scores of layer 3"),
            FloatingPointError,
            "layer 3 hold NaN",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_nan_of_what_does_not_exist_is_no_matter():
    found = top_k(torch.tensor([torch.nan, 1.0]), 2, valid=torch.tensor([False, True]))
    assert found.tolist() == [False, True]
