"""Renumbering and counting by key against dictionaries."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from shoestring.numbers import segments
from shoestring.numbers.segments import (
    extend_ngrams,
    naive_renumber,
    naive_run_lengths,
    renumber,
    run_lengths,
)

keys = st.lists(st.integers(0, 2**62), max_size=60) | st.lists(st.integers(0, 4), max_size=60)


@given(keys)
def test_renumber_equals_the_sorted_list(values):
    tensor = torch.tensor(values, dtype=torch.int64)
    got, expected = renumber(tensor), naive_renumber(tensor)
    assert torch.equal(got[0], expected[0])
    assert got[1] == expected[1]


@given(keys)
def test_run_lengths_equal_a_dictionary(values):
    tensor = torch.tensor(values, dtype=torch.int64)
    for got, expected in zip(run_lengths(tensor), naive_run_lengths(tensor), strict=True):
        assert torch.equal(got, expected)


@given(st.lists(st.integers(0, 3), min_size=5, max_size=60), st.integers(2, 5))
def test_ngrams_are_equal_if_and_only_if_their_ids_are(tokens, order):
    row = torch.tensor(tokens)
    ids, distinct = renumber(row)
    for n in range(2, order + 1):
        ids, distinct = extend_ngrams(ids[: len(row) - n + 1], distinct, row[n - 1 :])
    grams = [tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)]
    ranks = {gram: rank for rank, gram in enumerate(sorted(set(grams)))}
    assert ids.tolist() == [ranks[gram] for gram in grams]
    assert distinct == len(ranks)


def test_short_sorts_run_on_one_thread_and_leave_the_number_as_it_was(monkeypatch):
    before, during = torch.get_num_threads(), []
    sort = torch.Tensor.sort

    def watched(keys):
        during.append(torch.get_num_threads())
        return sort(keys)

    monkeypatch.setattr(torch.Tensor, "sort", watched)
    torch.set_num_threads(2)
    try:
        run_lengths(torch.arange(9))
        renumber(torch.arange(9))
        monkeypatch.setattr(segments, "_THREADS_PAY_FROM", 5)
        run_lengths(torch.arange(9))
        assert during == [1, 1, 2]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_pairs_beyond_63_bits_are_refused():
    with pytest.raises(ValueError, match="do not fit 63 bits"):
        extend_ngrams(torch.tensor([0]), 2**33, torch.tensor([2**31]))
