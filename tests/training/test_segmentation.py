"""Cutting responses into groups."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.tiny_hamburger import random_ids, tiny_base

from shoestring.data.mixed_examples import TokenExample
from shoestring.training.segmentation import (
    Decreasing,
    Sliding,
    SmallGroup,
    confidence_entropy,
    response_entropies,
    segment,
    size_histogram,
)


@pytest.mark.parametrize(
    ("entropies", "sizes"),
    [
        ([2, 0.1, 0.01, 0.5, 0.04, 0.02], [4, 2]),
        ([2, 0.1, 0.01, 0.7, 0.04, 0.02], [3, 3]),
        ([0.01] * 6, [4, 2]),
        ([1, 1, 1], [1, 1, 1]),
        ([3, 0.8, 0.2, 0.01, 0.01, 0.01], [4, 2]),
        ([], []),
        ([5], [1]),
    ],
)
def test_groups_of_known_entropies(entropies, sizes):
    assert segment(entropies) == sizes


@given(entropies=st.lists(st.floats(0, 8) | st.floats(0, 0.1), max_size=60), most=st.integers(1, 6))
def test_every_group_begins_where_it_must(entropies, most):
    sizes = segment(entropies, most)
    assert sum(sizes) == len(entropies)
    assert all(1 <= size <= most for size in sizes)
    starts = [sum(sizes[:i]) for i in range(1, len(sizes))]
    for number, start in enumerate(starts):
        before = entropies[start - sizes[number] : start]
        sure = entropies[start] >= 0.05 and entropies[start] >= 0.3 * max(before)
        assert sure or sizes[number] == most


@given(entropies=st.lists(st.floats(0, 8), min_size=1, max_size=40))
def test_small_groups_leave_what_is_uncertain_alone(entropies):
    rule = SmallGroup(64)
    sizes, at = segment(entropies, 4, rule), 0
    for size in sizes:
        if size > 1:
            assert max(entropies[at : at + size]) < confidence_entropy(0.95, 64)
        at += size


def test_the_sliding_rule_goes_by_each_token_alone():
    limit = confidence_entropy(0.7, 64)
    below, above = limit - 0.01, limit + 0.01
    assert segment([above, below, below, above, above, below], 4, Sliding(64)) == [3, 1, 2]
    assert segment([4, 1, 0.9, 2], 4, Decreasing(0.0, 0.3)) == [3, 1]


def test_entropy_of_a_confidence_is_that_of_such_a_distribution():
    p = torch.full((64,), 0.3 / 63, dtype=torch.float64)
    p[5] = 0.7
    assert confidence_entropy(0.7, 64) == pytest.approx(float(-(p * p.log()).sum()))


def examples():
    lengths = [(1, 7), (5, 11), (3, 4)]
    return [
        TokenExample(torch.tensor(random_ids(total, seed)), prompt)
        for seed, (prompt, total) in enumerate(lengths)
    ]


def test_entropies_are_of_the_distributions_before_each_token():
    base, given_examples = tiny_base(), examples()
    for example, found in zip(given_examples, response_entropies(base, given_examples), strict=True):
        p = base(example.ids[None]).logits[0, example.prompt_length - 1 : -1].double().softmax(-1)
        torch.testing.assert_close(found.double(), -(p * p.log()).sum(-1), rtol=1e-4, atol=1e-4)


def test_a_window_as_long_as_the_text_changes_nothing_and_a_short_one_does():
    base, given_examples = tiny_base(), examples()
    whole, wide, narrow = (response_entropies(base, given_examples, w)[1] for w in (None, 99, 2))
    torch.testing.assert_close(whole, wide, rtol=1e-5, atol=1e-5)
    assert (whole - narrow).abs().max() > 1e-3


def test_the_histogram_is_of_shares():
    assert size_histogram([[1, 1, 2], [4]]) == {1: 0.5, 2: 0.25, 4: 0.25}


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="token 1 is NaN"):
        segment([1.0, math.nan])
    with pytest.raises(ValueError, match="max_steps=0"):
        segment([1.0], 0)
    with pytest.raises(ValueError, match=r"threshold=-1"):
        Decreasing(-1.0)
    with pytest.raises(ValueError, match="confidence=1"):
        confidence_entropy(1.0, 64)
    with pytest.raises(ValueError, match="window=0"):
        response_entropies(tiny_base(), examples(), 0)
    with pytest.raises(ValueError, match="example 0 has an empty prompt"):
        response_entropies(tiny_base(), [TokenExample(torch.tensor([1, 2]), 0)])
