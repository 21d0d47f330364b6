"""The memory of the last tokens that were let in."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.layers.seqboat.token_window import (
    empty_window,
    in_order,
    last,
    next_rank,
    push,
    with_sequence,
)


@given(slots=st.integers(1, 5), tokens=st.integers(0, 12), cut=st.integers(0, 12))
def test_one_by_one_and_as_a_sequence_keep_the_same_tokens(slots, tokens, cut):
    cut = min(cut, tokens)
    keys, values = torch.randn(1, tokens, 2), torch.randn(1, tokens, 3)
    positions = torch.arange(tokens)[None] * 7
    window = empty_window(1, slots, 2, 3, device="cpu", dtype=torch.float32)
    for t in range(cut):
        window = push(window, keys[:, t], values[:, t], positions[:, t])
    joined = with_sequence(
        window, keys[:, cut:], values[:, cut:], positions[:, cut:], torch.tensor([tokens - cut])
    )
    kept = in_order(last(joined, slots))
    assert next_rank(kept).tolist() == [tokens]
    first = max(tokens - slots, 0)
    assert kept["ranks"].tolist() == [[-1] * (slots - (tokens - first)) + list(range(first, tokens))]
    held = kept["ranks"][0] >= 0
    assert torch.equal(kept["keys"][0, held], keys[0, first:])
    assert torch.equal(kept["values"][0, held], values[0, first:])
    assert torch.equal(kept["positions"][0, held], positions[0, first:])


def test_samples_fill_at_their_own_pace():
    window = empty_window(2, 3, 1, 1, device="cpu", dtype=torch.float32)
    sequence = torch.arange(8.0).view(2, 4, 1)
    joined = with_sequence(window, sequence, sequence, torch.arange(4).expand(2, 4), torch.tensor([4, 1]))
    kept = in_order(last(joined, 3))
    assert kept["ranks"].tolist() == [[1, 2, 3], [-1, -1, 0]]
    assert kept["keys"][0, :, 0].tolist() == [1.0, 2.0, 3.0]
    assert kept["keys"][1, 2, 0].item() == 4.0
