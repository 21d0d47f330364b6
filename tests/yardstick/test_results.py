"""Saved results: one file per system, none from a smoke run."""

import dataclasses

import pytest

from shoestring.yardstick.comparison import Effort
from shoestring.yardstick.results import load_results, results_folder, save_result


def test_save_and_load(entries, tmp_path):
    folder = tmp_path / "deep" / "results"
    path = save_result(entries[0].comparison, folder)
    assert path == folder / "counting.json"
    assert load_results(folder, ["blocked", "counting"]) == {"counting": entries[0].comparison}
    assert load_results(tmp_path / "missing", ["counting"]) == {}


def test_the_last_one_saved_stays(entries, tmp_path):
    save_result(entries[0].comparison, tmp_path)
    later = dataclasses.replace(entries[0].comparison, seed=99)
    save_result(later, tmp_path)
    assert load_results(tmp_path, ["counting"])["counting"].seed == 99
    assert [path.name for path in tmp_path.iterdir()] == ["counting.json"]


def test_a_smoke_run_is_no_result(entries, tmp_path):
    smoke = dataclasses.replace(entries[0].comparison, effort=Effort.SMOKE)
    with pytest.raises(
        ValueError, match="counting: a smoke run is no result; measure with effort quick or full"
    ):
        save_result(smoke, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_system_is_refused(entries, tmp_path):
    save_result(entries[0].comparison, tmp_path).rename(tmp_path / "blocked.json")
    with pytest.raises(
        ValueError, match=r"blocked\.json: holds the system 'counting'; name it counting\.json"
    ):
        load_results(tmp_path, ["blocked"])


def test_other_files_of_the_folder_are_not_read(tmp_path):
    (tmp_path / "notes.json").write_text("not even JSON")
    assert load_results(tmp_path, ["counting"]) == {}


def test_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("SHOESTRING_RESULTS", raising=False)
    assert str(results_folder()) == "results"
    monkeypatch.setenv("SHOESTRING_RESULTS", str(tmp_path))
    assert results_folder() == tmp_path
    assert str(results_folder("elsewhere")) == "elsewhere"
