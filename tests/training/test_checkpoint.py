import pytest
import torch
from torch import nn

from shoestring.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    model_tensors,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    steps_done,
)


def checkpoint(step):
    model = {"w": torch.arange(6.0).view(2, 3).t(), "n": torch.tensor(3)}
    return Checkpoint(step, model, {"losses": torch.ones(step)}, {"seconds": 0.1}, None)


def test_what_is_saved_comes_back_and_two_are_kept(tmp_path):
    assert load_checkpoint(tmp_path) is None
    assert steps_done(tmp_path) == 0
    for step in (5, 12, 100):
        save_checkpoint(tmp_path, checkpoint(step))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000012", "step-00000100"]
    assert steps_done(tmp_path) == 100
    back = load_checkpoint(tmp_path)
    assert (back.step, back.notes, back.best) == (100, {"seconds": 0.1}, None)
    assert torch.equal(back.model["w"], checkpoint(1).model["w"])
    assert back.model["n"].dtype == torch.int64


def test_weights_that_share_storage_are_saved(tmp_path):
    weight = torch.randn(4, 3)
    one = Checkpoint(1, {"a": weight, "b": weight, "c": weight[1:]}, {}, {}, {"a": weight})
    save_checkpoint(tmp_path, one)
    back = load_checkpoint(tmp_path)
    assert torch.equal(back.model["a"], back.model["b"])
    assert torch.equal(back.model["c"], weight[1:])
    assert torch.equal(back.best["a"], weight)


@pytest.mark.parametrize("damage", ["cut", "gone", "state"])
def test_the_one_before_a_damaged_one_is_used(tmp_path, damage):
    for step in (1, 2):
        save_checkpoint(tmp_path, checkpoint(step))
    file = tmp_path / "step-00000002" / "training.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-2])
    elif damage == "gone":
        file.unlink()
    else:
        (file.parent / "state.json").write_text("[]")
    assert load_checkpoint(tmp_path).step == 1


def test_states_keep_their_own_type():
    """A state in float32 of a parameter in bfloat16 is not rounded on the way."""
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    names = {parameter: "p"}
    first, second = (torch.optim.SGD([parameter], lr=0.1) for _ in range(2))
    first.state[parameter] = {"exact": torch.tensor([1 / 3] * 3), "count": 4, "none": None}
    restore_optimizer(second, names, *optimizer_tensors(first, names))
    state = second.state[parameter]
    assert torch.equal(state["exact"], torch.tensor([1 / 3] * 3))
    assert (state["count"], state["none"]) == (4, None)


def test_a_state_that_is_no_tensor_is_refused():
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    with pytest.raises(TypeError, match="'_extra_state' is a dict"):
        model_tensors(Odd(1, 1))
