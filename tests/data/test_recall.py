import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data.recall import (
    AssociativeRecall,
    PairRecall,
    ScatteredRecall,
    naive_associative_recall,
    naive_pair_recall,
    naive_scattered_recall,
)
from shoestring.data.seeded import IGNORED


@given(length=st.integers(14, 40), keys=st.integers(1, 7), values=st.integers(1, 5), seed=st.integers(0, 99))
def test_scattered_answers_are_those_of_a_table(length, keys, values, seed):
    task = ScatteredRecall(length, keys, values, queries=7, fillers=3, batch_size=3, seed=seed)
    tokens, targets = task(seed)
    assert torch.equal(targets, naive_scattered_recall(tokens, task))
    assert (targets != IGNORED).sum(1).tolist() == [7] * 3
    assert (targets[:, : length // 2] == IGNORED).all()
    shown = (tokens >= 3) & (tokens < 3 + keys * values)
    assert shown.sum(1).tolist() == [keys] * 3
    assert not shown[:, length // 2 :].any()
    assert tokens.max() < task.vocabulary


@given(length=st.integers(10, 40), pairs=st.integers(1, 5), more=st.integers(0, 4), seed=st.integers(0, 99))
def test_pair_answers_are_those_of_a_table(length, pairs, more, seed):
    task = PairRecall(length, pairs, pairs + more, values=3, batch_size=3, seed=seed)
    keys, values, targets = task(seed)
    assert torch.equal(targets, naive_pair_recall(keys, values))
    assert (targets[:, -pairs:] != IGNORED).all()
    assert (targets[:, :-pairs] == IGNORED).all()
    for row in range(3):
        shown = keys[row][values[row] > 0]
        assert sorted(shown.tolist()) == sorted(keys[row, -pairs:].tolist())
        assert len(set(shown.tolist())) == pairs
    assert not values[:, length // 2 :].any()


@given(pairs=st.integers(1, 6), less=st.integers(0, 5), more=st.integers(0, 9), seed=st.integers(0, 99))
def test_associative_answers_are_those_of_a_table(pairs, less, more, seed):
    queries = max(1, pairs - less)
    length = 2 * pairs + queries + more
    task = AssociativeRecall(length, pairs, queries, pairs + 2, values=4, batch_size=3, seed=seed)
    tokens, targets = task(seed)
    assert torch.equal(targets, naive_associative_recall(tokens, task))
    assert (targets != IGNORED).sum(1).tolist() == [queries] * 3
    assert tokens.max() < task.vocabulary


@pytest.mark.parametrize("kind", [ScatteredRecall, PairRecall, AssociativeRecall])
def test_a_batch_is_a_function_of_seed_and_step(kind):
    batches = [kind(seed=seed)(step) for seed, step in ((1, 2), (1, 2), (2, 2), (1, 3))]
    first, same, *others = (torch.stack(batch) for batch in batches)
    assert torch.equal(first, same)
    assert all(not torch.equal(first, other) for other in others)
    assert first.shape[1:] == (16, kind().length)


@pytest.mark.parametrize(
    ("kind", "bad", "message"),
    [
        (ScatteredRecall, {"keys": 65}, "keys=65"),
        (ScatteredRecall, {"queries": 65}, "queries=65"),
        (ScatteredRecall, {"fillers": 0}, "fillers=0"),
        (PairRecall, {"keys": 31}, "pairs=32 need.*keys=31"),
        (PairRecall, {"length": 63}, "length=63"),
        (AssociativeRecall, {"queries": 9}, "queries=9"),
        (AssociativeRecall, {"keys": 7}, "keys=7"),
        (AssociativeRecall, {"length": 23}, "use 24"),
        (PairRecall, {"seed": -1}, "seed=-1"),
        (PairRecall, {"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_does_not_fit_is_refused(kind, bad, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(kind(), **bad)
