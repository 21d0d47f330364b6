"""`shoestring train` with a plan of a few steps."""

import dataclasses
import json

import pytest

from shoestring.cli.main import run
from shoestring.training import small_models

pytest.importorskip("sklearn")


@pytest.fixture(autouse=True)
def short(monkeypatch, tmp_path):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    model = small_models.SMALL_MODELS["digits-classifier"]
    plan = dataclasses.replace(model.plan, steps=6, warmup_steps=1, evaluate_every=3)
    monkeypatch.setitem(small_models.SMALL_MODELS, "digits-classifier", dataclasses.replace(model, plan=plan))


def test_it_trains_once_into_the_cache(capsys, tmp_path):
    assert run(["train", "digits-classifier", "--json"]) == 0
    shown = capsys.readouterr()
    first = json.loads(shown.out)
    assert first["metric"] == "test error"
    assert (first["steps"], first["resumed_from"]) == (6, 0)
    assert first["folder"].startswith(str(tmp_path / "cache"))
    assert "6 of 6 steps" in shown.err
    assert "parameters, about" in shown.err
    assert run(["train", "digits-classifier", "--json"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["resumed_from"] == 6
    assert second["value"] == first["value"]
    assert run(["train", "digits-classifier", "--seed", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] != first["folder"]


def test_text_says_what_came_out_and_where(capsys, tmp_path):
    assert run(["train", "digits-classifier", "--out", str(tmp_path / "here")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("test error ")
    assert str(tmp_path / "here" / "model") in text
    assert (tmp_path / "here" / "model" / "model.safetensors").exists()


def test_a_stopped_run_is_gone_on_with_only_when_asked(capsys, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(["train", "digits-classifier", "--out", str(whole)]) == 0
    job = small_models.find_small_model("digits-classifier").prepare(0)

    def stop(trainer, step, loss):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_models.train_small_model(
            small_models.find_small_model("digits-classifier"), job, parts, on_step=stop
        )
    assert run(["train", "digits-classifier", "--out", str(parts)]) == 2
    assert "stopped at step 4 of 6; --resume goes on" in capsys.readouterr().err
    assert run(["train", "digits-classifier", "--out", str(parts), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resumed_from"] == 4
    files = [folder / "model" / "model.safetensors" for folder in (whole, parts)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_dry_run_says_the_cost_and_writes_nothing(capsys, tmp_path):
    assert run(["train", "digits-classifier", "--out", str(tmp_path / "no"), "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["steps_left"] == 6
    assert shown["estimated_seconds"] > 0
    assert not (tmp_path / "no").exists()


def test_without_a_name_they_are_listed(capsys):
    assert run(["train"]) == 0
    text = capsys.readouterr().out
    assert "digits-classifier" in text
    assert "pydoc-bytes" in text
    assert run(["train", "--json"]) == 0
    assert {one["name"] for one in json.loads(capsys.readouterr().out)} == set(small_models.SMALL_MODELS)


def test_bad_input_is_one_line(capsys, tmp_path):
    assert run(["train", "gpt"]) == 2
    assert "model 'gpt' is not known; use digits-classifier" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run(["train", "digits-classifier", "--out", str(tmp_path / "file" / "x")]) == 2
    assert "file" in capsys.readouterr().err
