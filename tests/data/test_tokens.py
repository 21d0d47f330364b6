import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data.tokens import (
    Bytes,
    Characters,
    TextBatches,
    every_window,
    naive_window,
    split_ids,
    token_ids,
)


@given(st.text(min_size=1, max_size=40))
def test_text_comes_back(text):
    characters = Characters.of(text)
    assert characters.decode(characters.encode(text)) == text
    assert sorted(set(characters.encode(text))) == list(range(len(characters)))
    assert Bytes().decode(Bytes().encode(text)) == text
    assert max(Bytes().encode(text)) < len(Bytes())


def test_unknown_characters_are_named():
    with pytest.raises(ValueError, match="'z' is not in this vocabulary of 2"):
        Characters.of("aab").encode("baz")
    with pytest.raises(ValueError, match="empty"):
        Characters.of("")


@given(n=st.integers(2, 60), length=st.integers(1, 59), step=st.integers(0, 9), seed=st.integers(0, 9))
def test_windows_are_pieces_of_the_text(n, length, step, seed):
    length = min(length, n - 1)
    ids = torch.arange(n) * 3
    inputs, targets = TextBatches(ids, length, batch_size=4, seed=seed)(step)
    assert inputs.shape == targets.shape == (4, length)
    for row in range(4):
        start = int(inputs[row, 0]) // 3
        assert (inputs[row].tolist(), targets[row].tolist()) == naive_window(ids, start, length)
    again = TextBatches(ids, length, batch_size=4, seed=seed)(step)
    assert torch.equal(inputs, again[0])


def test_random_windows_reach_both_ends():
    starts = {int(row[0]) for step in range(40) for row in TextBatches(torch.arange(7), 3)(step)[0]}
    assert starts == {0, 1, 2, 3}


@given(n=st.integers(2, 60), length=st.integers(1, 20), batch_size=st.integers(1, 5))
def test_every_token_is_asked_once(n, length, batch_size):
    length = min(length, n - 1)
    batches = list(every_window(torch.arange(n), length, batch_size))
    asked = torch.cat([targets.flatten() for _, targets in batches]).tolist()
    assert asked == list(range(1, len(asked) + 1))
    assert n - length <= len(asked) + 1 <= n
    assert all(torch.equal(inputs + 1, targets) for inputs, targets in batches)


def test_the_end_is_held_out():
    train, held_out = split_ids(torch.arange(20), 0.25)
    assert (train.tolist(), held_out.tolist()) == (list(range(15)), list(range(15, 20)))
    for share in (0.0, 1.0, 0.01):
        with pytest.raises(ValueError, match=f"held_out={share}"):
            split_ids(torch.arange(20), share)


def test_any_tokenizer_serves(byte_tokenizer):
    assert token_ids("ab a", byte_tokenizer).shape == (4,)
    assert token_ids("ab a", Bytes()).tolist() == [97, 98, 32, 97]


def test_too_short_a_text_is_refused():
    with pytest.raises(ValueError, match="5 tokens, too few for windows of length=5"):
        TextBatches(torch.arange(5), 5)
    with pytest.raises(ValueError, match="length=0"):
        TextBatches(torch.arange(5), 0)
    with pytest.raises(ValueError, match="5 tokens"):
        next(every_window(torch.arange(5), 9))
