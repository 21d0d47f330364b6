import pytest
import torch

from shoestring.layers.state import clone_state, reorder_state, state_bytes


def _state():
    return {"conv": torch.randn(2, 3, 4), "ssm": torch.randn(2, 5, dtype=torch.complex64)}


def test_bytes_count_every_tensor():
    assert state_bytes(_state()) == 2 * 3 * 4 * 4 + 2 * 5 * 8


def test_a_clone_shares_nothing():
    state = _state()
    copy = clone_state(state)
    copy["conv"].zero_()
    assert state["conv"].abs().sum() > 0
    assert copy.keys() == state.keys()


def test_reorder_copies_samples():
    state = _state()
    taken = reorder_state(state, torch.tensor([1, 1, 0]))
    for name, tensor in state.items():
        assert torch.equal(taken[name], tensor[[1, 1, 0]])
    with pytest.raises(IndexError):
        reorder_state(state, torch.tensor([2]))
