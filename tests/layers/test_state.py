import pytest
import torch

from shoestring.layers.state import clone_state, join_states, reorder_state, state_bytes, state_of


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


def test_joined_states_come_apart_again():
    states = [{"x": torch.ones(1)} for _ in range(12)]
    states[3] = {}
    states[11] = _state()
    joined = join_states(states)
    assert set(joined) == {f"{i}.x" for i in range(11) if i != 3} | {"11.conv", "11.ssm"}
    for layer, state in enumerate(states):
        found = state_of(joined, layer)
        assert found.keys() == state.keys()
        assert all(found[name] is tensor for name, tensor in state.items())
