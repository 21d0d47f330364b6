"""Drafts from the text itself, and how much of them is verified."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.generation.speculation.draft_length import FixedLength, MeasuredLength
from shoestring.generation.speculation.prompt_lookup import PromptLookup, naive_lookup


@given(
    text=st.lists(st.integers(0, 3), min_size=1, max_size=40), longest=st.integers(1, 5),
    shortest=st.integers(1, 5), count=st.integers(1, 9), cut=st.integers(1, 40),
)  # fmt: skip
def test_the_index_finds_what_a_search_finds(text, longest, shortest, count, cut):
    shortest = min(shortest, longest)
    draft = PromptLookup(count, longest, shortest).draft(torch.Generator(), 0.0)
    draft.begin(None, text[:cut])
    draft.add(text[cut:])
    found = draft.propose(text[-1], count)
    assert list(found.tokens[1:]) == naive_lookup(text, longest, shortest, count)


@pytest.mark.parametrize("bad", [{"tokens": 0}, {"shortest": 0}, {"shortest": 3, "longest": 2}])
def test_lengths_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match="shortest at most longest"):
        PromptLookup(**bad)


def speed_over_plain(right_odds, cost, steps=400, seed=0):
    """Speed of a simulated decode whose drafts are right with these odds, token by token, over plain."""
    rule, generator = MeasuredLength(), torch.Generator().manual_seed(seed)
    seconds = tokens = 0.0
    for _ in range(steps):
        hits = 0
        while hits < 7 and float(torch.rand((), generator=generator)) < right_odds:
            hits += 1
        drafted = rule.choose(0, 7)
        took = cost(drafted)
        rule.took(drafted, took)
        accepted = min(hits, drafted)
        # As of a draft that costs nothing: one more token than is verified can be compared.
        known = min(hits, drafted + 1)
        rule.record(0, 7, known, known < drafted + 1)
        seconds, tokens = seconds + took, tokens + 1 + accepted
    return tokens / seconds * cost(0)


@pytest.mark.parametrize("odds", [0.0, 0.1, 0.3])
def test_drafts_that_do_not_pay_are_not_verified(odds):
    assert speed_over_plain(odds, lambda n: 1 + 0.4 * n) >= 0.95


def test_drafts_that_pay_are():
    assert speed_over_plain(0.9, lambda n: 1 + 0.15 * n) > 2
    assert speed_over_plain(0.5, lambda n: 1 + 0.15 * n) > 1.15


def test_where_drafts_never_pay_one_is_tried_now_and_then():
    rule = MeasuredLength(first_odds=0.0)
    for _ in range(3):
        rule.took(0, 1.0)
    chosen = [rule.choose(0, 4) for _ in range(40)]
    assert set(chosen[:32]) == {0}
    assert 1 in chosen[32:]


def test_a_fixed_length_is_always_all():
    rule = FixedLength().fresh()
    rule.took(3, 1.0)
    rule.record(0, 3, 0, True)
    assert rule.choose(0, 5) == 5
