import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data.shuffled import ShuffledBatches, shuffled_rows


@given(size=st.integers(1, 13), batch_size=st.integers(1, 30), seed=st.integers(0, 5))
def test_every_epoch_sees_each_row_once(size, batch_size, seed):
    rows = [row for step in range(2 * size) for row in shuffled_rows(step, size, batch_size, seed).tolist()]
    assert len(rows) == 2 * size * batch_size
    for epoch in range(2 * batch_size):
        assert sorted(rows[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_a_batch_is_a_function_of_seed_and_step():
    x = torch.arange(50)
    batches = ShuffledBatches(x, -x, batch_size=20, seed=3)
    late = batches(7)
    assert torch.equal(late[0], -late[1])
    assert torch.equal(ShuffledBatches(x, -x, batch_size=20, seed=3)(7)[0], late[0])
    assert not torch.equal(ShuffledBatches(x, -x, batch_size=20, seed=4)(7)[0], late[0])
    assert not torch.equal(batches(8)[0], late[0])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        ShuffledBatches(torch.zeros(2), torch.zeros(3), batch_size=1)
    with pytest.raises(ValueError, match="none"):
        ShuffledBatches(batch_size=1)
    with pytest.raises(ValueError, match="batch_size=0"):
        ShuffledBatches(torch.zeros(2), batch_size=0)
