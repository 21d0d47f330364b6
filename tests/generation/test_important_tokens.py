"""How many tokens are important, and which."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.generation.important_tokens import (
    Attended,
    FixedShare,
    Shuffled,
    TopMass,
    UpsideDown,
    naive_top_mass_count,
    probe_rows,
    recent_rows,
)

MASSES = st.lists(st.floats(0, 10), min_size=1, max_size=40).filter(lambda m: sum(m) > 0.1)


def attended(mass, counts=None, forced=()):
    n = len(mass)
    marks = torch.zeros(n, dtype=torch.bool)
    marks[list(forced)] = True
    counts = torch.arange(n, 0, -1) if counts is None else torch.tensor(counts)
    return Attended(0, torch.tensor(mass, dtype=torch.float64)[None], counts, marks)


@given(mass=MASSES, tau=st.floats(0.01, 1))
def test_as_few_tokens_as_hold_the_share(mass, tau):
    p = int(TopMass(tau).needed(torch.tensor(mass, dtype=torch.float64)[None]))
    assert p == naive_top_mass_count(mass, tau)
    held = sorted(mass, reverse=True)
    if tau < 1:
        # minimal: without the smallest that is kept there is too little
        assert sum(held[:p]) >= tau * sum(mass) * (1 - 1e-9)
        assert sum(held[: p - 1]) < tau * sum(mass) * (1 + 1e-9)


@given(mass=MASSES, taus=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)))
def test_more_of_the_attention_takes_no_fewer_tokens(mass, taus):
    low, high = (int(TopMass(t).needed(torch.tensor(mass, dtype=torch.float64)[None])) for t in sorted(taus))
    assert low <= high


def test_how_many_by_the_sum_and_which_by_the_mean():
    """The first token has the largest sum but was seen by many; two are needed, by the sums."""
    found = TopMass(0.6, least=1).mark(attended([5.0, 1.0, 3.0, 1.0], counts=[50, 1, 3, 1]))
    assert found.tolist() == [[False, True, True, False]]


def test_forced_tokens_come_first_and_unseen_ones_last():
    seen = attended([5.0, 0.0, 3.0, 1.0], counts=[1, 0, 1, 1], forced=[3])
    assert TopMass(0.5, least=2).mark(seen).tolist() == [[True, False, False, True]]
    assert TopMass(0.5, least=3).mark(seen).tolist() == [[True, False, True, True]]
    unseen = attended([5.0, 0.0, 3.0, 1.0], counts=[1, 0, 1, 1], forced=[1, 2, 3])
    assert TopMass(0.5, least=1).mark(unseen).tolist() == [[False, True, True, True]]


@given(mass=MASSES, seed=st.integers(0, 9))
def test_controls_mark_as_many_tokens_and_the_forced_ones(mass, seed):
    seen = attended(mass, forced=[len(mass) - 1])
    count = int(TopMass().mark(seen).sum())
    for choice in (Shuffled(TopMass(), seed), UpsideDown(TopMass()), FixedShare(count / len(mass), 1)):
        marked = choice.mark(seen)
        assert int(marked.sum()) == count
        assert bool(marked[0, -1])


def test_upside_down_marks_what_gets_the_least():
    seen = attended([4.0, 3.0, 2.0, 1.0], counts=[1, 1, 1, 1])
    assert UpsideDown(TopMass(0.7, least=1)).mark(seen).tolist() == [[False, False, True, True]]
    other = Shuffled(TopMass(0.7, least=1), 0), Shuffled(TopMass(0.7, least=1), 5)
    many = attended([1.0] * 40)
    assert not torch.equal(other[0].mark(many), other[1].mark(many))


@given(n=st.integers(1, 300), count=st.integers(1, 200), seed=st.integers(0, 9))
def test_half_of_the_probe_rows_are_recent_and_the_others_are_drawn_from_the_rest(n, count, seed):
    rows = probe_rows(n, count, torch.Generator().manual_seed(seed)).tolist()
    assert rows == sorted(set(rows))
    assert len(rows) == min(n, count)
    recent = recent_rows(n, count)
    assert rows[-recent:] == list(range(n - recent, n))
    assert recent == (min(n, count) + 1) // 2


@pytest.mark.parametrize("tau", [0.0, -1.0, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(tau):
    with pytest.raises(ValueError, match="it must be in \\(0, 1\\]"):
        TopMass(tau)


def test_no_tokens_at_least_are_refused():
    with pytest.raises(ValueError, match="least=0"):
        TopMass(least=0)
