import sys
import types

import pytest

from shoestring.errors import MissingExtra
from shoestring.training.metrics_log import METRICS, MetricsLog, read_metrics


def test_lines_are_kept_up_to_the_step_that_a_run_resumes_from(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": step / 3})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4, "lo')  # killed here
    with MetricsLog(tmp_path, 2) as log:
        log.write(3, {"loss": 7.0})
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": 1 / 3},
        {"step": 2, "loss": 2 / 3},
        {"step": 3, "loss": 7.0},
    ]


def test_without_a_folder_nothing_is_written(tmp_path):
    with MetricsLog(None, 0) as log:
        log.write(1, {"loss": 1.0})
    assert read_metrics(tmp_path) == []


def test_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtra, match=r"shoestring\[tensorboard\]"):
        MetricsLog(tmp_path, 0, tensorboard=True)


def test_tensorboard_gets_every_value_and_forgets_what_comes_again(tmp_path, monkeypatch):
    calls = []

    class Writer:
        def __init__(self, folder, purge_step):
            calls.append((folder.name, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def close(self):
            calls.append("closed")

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    with MetricsLog(tmp_path, 4, tensorboard=True) as log:
        log.write(5, {"loss": 1.0, "learning_rate": 0.5})
    assert calls == [("tensorboard", 5), ("loss", 1.0, 5), ("learning_rate", 0.5, 5), "closed"]
