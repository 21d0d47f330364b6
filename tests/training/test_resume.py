"""A run that is killed and resumed ends with the same weights, bit for bit."""

import json
import os
import signal

import pytest
import torch

from shoestring.training import Trainer, TrainingPlan
from shoestring.training import checkpoint as checkpoint_file
from shoestring.training.metrics_log import read_metrics

PLAN = TrainingPlan(7, 1e-2, warmup_steps=2, evaluate_every=2, patience=9)


def evaluate(model):
    return model.last.bias.square().sum().item()


def trainer(model, loss, folder=None, **options):
    return Trainer(
        model, loss, PLAN, **{"folder": folder, "evaluate": evaluate, "checkpoint_every": 2, **options}
    )


def kill_self(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def uninterrupted(small, task):
    loss, batches = task
    model = small()
    record = trainer(model, loss).run(batches)
    return model.state_dict(), record


def assert_as_if_never_stopped(uninterrupted, model, record):
    expected, whole = uninterrupted
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert record.losses == whole.losses
    assert record.evaluations == whole.evaluations


@pytest.mark.parametrize("step", [0, 1, 2, 4, 6])
@pytest.mark.parametrize("where", ["backward", "after", "saving"])
def test_killed_anywhere(small, task, tmp_path, forked, uninterrupted, step, where):
    loss, batches = task

    def run(_):
        model = small()

        def on_step(_, done, value):
            if where == "after" and done == step:
                kill_self()

        def loss_of(m, batch):
            value = loss(m, batch)
            if where == "backward" and one.step == step:
                value.register_hook(kill_self)
            return value

        if where == "saving":
            written = checkpoint_file.save_file

            def save(tensors, path):
                written(tensors, path)
                if one.step >= step:
                    kill_self()

            checkpoint_file.save_file = save
        one = trainer(model, loss_of, tmp_path, on_step=on_step)
        one.run(batches)

    assert forked(run) == [-signal.SIGKILL]
    saved = max(0, (step + 1) // 2 * 2 - 2) if where == "saving" else step - step % 2
    model = small(seed=9 if saved else 0)  # what it begins with must not matter once there is a checkpoint
    record = trainer(model, loss, tmp_path).run(batches)
    assert record.resumed_from == saved
    assert_as_if_never_stopped(uninterrupted, model, record)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 8))
    assert [line["loss"] for line in lines] == list(record.losses)


def test_a_run_that_is_done_is_not_done_again(small, task, tmp_path, uninterrupted):
    loss, batches = task
    trainer(small(), loss, tmp_path).run(batches)
    model = small(seed=9)

    def refuse(step):
        raise AssertionError("trained again")

    record = trainer(model, loss, tmp_path).run(refuse)
    assert record.resumed_from == 7
    assert_as_if_never_stopped(uninterrupted, model, record)


@pytest.mark.parametrize("optimizer", ["adafactor", "adam", "radam", "sgd"])
def test_every_optimizer_resumes(small, task, tmp_path, optimizer):
    loss, batches = task
    options = {"momentum": 0.9} if optimizer == "sgd" else {}
    plan = TrainingPlan(5, 1e-2, optimizer=optimizer, optimizer_options=options)
    whole, parts = small(), small()
    Trainer(whole, loss, plan).run(batches)

    def stop(trainer, step, value):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(parts, loss, plan, folder=tmp_path, on_step=stop).run(batches)
    again = small(seed=9)
    assert Trainer(again, loss, plan, folder=tmp_path).run(batches).resumed_from == 3
    assert all(torch.equal(p, again.state_dict()[name]) for name, p in whole.state_dict().items())


def test_ctrl_c_ends_after_the_step_and_saves(small, task, tmp_path, uninterrupted):
    loss, batches = task

    def pressed(m, batch):
        if one.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(m, batch)

    one = trainer(small(), pressed, tmp_path, checkpoint_every=100)
    with pytest.raises(KeyboardInterrupt):
        one.run(batches)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    model = small(seed=9)
    record = trainer(model, loss, tmp_path).run(batches)
    assert record.resumed_from == 4
    assert_as_if_never_stopped(uninterrupted, model, record)


def test_an_interrupt_within_a_step_saves_nothing_half_done(small, task, tmp_path, uninterrupted):
    loss, batches = task

    def interrupted(m, batch):
        value = loss(m, batch)  # running averages have moved
        if one.step == 3:
            raise KeyboardInterrupt
        return value

    one = trainer(small(), interrupted, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        one.run(batches)
    model = small(seed=9)
    record = trainer(model, loss, tmp_path).run(batches)
    assert record.resumed_from == 2
    assert_as_if_never_stopped(uninterrupted, model, record)


def test_a_damaged_checkpoint_is_passed_over_and_said(small, task, tmp_path, uninterrupted, capsys):
    loss, batches = task
    trainer(small(), loss, tmp_path).run(batches)
    places = sorted(tmp_path.glob("step-*"))
    assert [place.name for place in places] == ["step-00000006", "step-00000007"]
    file = places[1] / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    model = small(seed=9)
    record = trainer(model, loss, tmp_path).run(batches)
    assert record.resumed_from == 6
    assert "step-00000007" in capsys.readouterr().err
    assert_as_if_never_stopped(uninterrupted, model, record)
    for place in tmp_path.glob("step-*"):
        (place / "state.json").write_text("{")
    with pytest.raises(ValueError, match="every checkpoint .* is damaged"):
        trainer(model, loss, tmp_path).run(batches)


def test_another_plan_or_model_is_refused(small, task, tmp_path):
    loss, batches = task
    trainer(small(), loss, tmp_path).run(batches)
    other = TrainingPlan(7, 2e-2, warmup_steps=2, evaluate_every=2, patience=9)
    with pytest.raises(ValueError, match=r"learning_rate=0.01, not 0.02.*another folder"):
        Trainer(small(), loss, other, folder=tmp_path, evaluate=evaluate).run(batches)
    wider = small()
    wider.last = torch.nn.Linear(6, 2)
    with pytest.raises(ValueError, match=r"'last.bias' is \(1,\) there and \(2,\) here"):
        trainer(wider, loss, tmp_path).run(batches)


def test_two_runs_in_one_folder_are_refused(small, task, tmp_path):
    loss, batches = task

    def second(first, step, value):
        with pytest.raises(ValueError, match="another run trains in"):
            trainer(small(), loss, tmp_path).run(batches)

    trainer(small(), loss, tmp_path, on_step=second).run(batches)


def test_nothing_is_pickled(small, task, tmp_path):
    loss, batches = task
    trainer(small(), loss, tmp_path).run(batches)
    files = {path.suffix for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"}
    assert files == {".safetensors", ".json", ".jsonl"}
    assert json.loads((tmp_path / "step-00000007" / "state.json").read_text())["step"] == 7


def test_states_that_cannot_be_stored_are_named(small, task, tmp_path):
    loss, batches = task

    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            self.state[self.param_groups[0]["params"][0]]["past"] = [1, 2]

    plan = TrainingPlan(1, 1e-2, optimizer=Odd)
    with pytest.raises(TypeError, match="Odd keeps 'past' as a list"):
        Trainer(small(), loss, plan, folder=tmp_path).run(batches)
