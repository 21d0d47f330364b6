import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data.listops import OPERATORS, PAD, VOCABULARY, ListOps, apply, as_text, naive_value

SHORT = ListOps(min_length=4, max_length=64, max_depth=4, max_arguments=5)


@given(index=st.integers(0, 1000), seed=st.integers(0, 5))
def test_the_value_is_that_of_the_expression(index, seed):
    tokens, value = dataclasses.replace(SHORT, seed=seed).sample(index)
    assert 4 < len(tokens) < 64
    assert naive_value(as_text(tokens)) == value


def test_long_expressions_are_those_of_the_arena():
    tokens, value = ListOps().sample(0)
    assert 500 < len(tokens) < 2000
    text = as_text(tokens)
    assert naive_value(text) == value
    depths, depth = [], 0
    for word in text.split():
        depth += word in OPERATORS
        depths.append(depth)
        depth -= word == "]"
    assert max(depths) <= 9  # the tenth level holds digits only


def test_lists_keep_to_their_depth_and_arguments():
    task = dataclasses.replace(SHORT, max_depth=3, max_arguments=3)
    seen = set()
    for index in range(40):
        counts: list[int] = []
        for word in as_text(task.sample(index)[0]).split():
            if word == "]":
                seen.add(counts.pop())
            elif counts:
                counts[-1] += 1
            if word in OPERATORS:
                counts.append(0)
                assert len(counts) <= 2
    assert seen == {2, 3}


@pytest.mark.parametrize(
    ("operator", "values", "expected"),
    [("[MIN", [4, 2, 9], 2), ("[MAX", [4, 2, 9], 9), ("[SM", [4, 2, 9], 5), ("[MED", [9, 1, 4], 4)],
)
def test_operators(operator, values, expected):
    assert apply(operator, values) == expected


def test_a_median_between_two_digits_is_rounded_down():
    assert apply("[MED", [1, 2, 3, 9]) == 2
    assert apply("[MED", [3, 4]) == 3
    assert naive_value("[MAX 2 9 [MIN 4 7 ] 0 ]") == 9
    with pytest.raises(ValueError, match="FIRST"):
        apply("[FIRST", [1])


@pytest.mark.parametrize("text", ["[MAX 2 9", "2 ]", "2 3", ""])
def test_brackets_must_match(text):
    with pytest.raises(ValueError, match="brackets|opened"):
        naive_value(text)


def test_a_batch_holds_the_samples_in_their_order_padded():
    ids, values = dataclasses.replace(SHORT, batch_size=5)(2)
    samples = [SHORT.sample(index) for index in range(10, 15)]
    assert values.tolist() == [value for _, value in samples]
    assert ids.shape == (5, max(len(tokens) for tokens, _ in samples))
    for row, (tokens, _) in zip(ids.tolist(), samples, strict=True):
        assert row == tokens + [PAD] * (ids.shape[1] - len(tokens))
    assert ids.max() < VOCABULARY
    assert ids.dtype == torch.int64


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"min_length": 63}, "min_length=63 and max_length=64"),
        ({"max_depth": 1}, "max_depth=1"),
        ({"max_arguments": 1}, "max_arguments=1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bounds_are_checked(bad, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SHORT, **bad)


def test_lengths_that_never_turn_up_are_said(monkeypatch):
    monkeypatch.setattr("shoestring.data.listops._TRIES", 50)
    with pytest.raises(ValueError, match="none of 50 expressions.*max_depth=2"):
        ListOps(max_depth=2).sample(0)
