"""`shoestring measure` over sample systems."""

import json

import pytest

from shoestring.cli.main import run
from shoestring.yardstick import Comparison


def test_table_goes_to_stdout_and_progress_to_stderr(lean, capsys):
    assert run(["measure", "zz-lean"]) == 0
    output = capsys.readouterr()
    assert "zz-lean: new way against old way" in output.out
    assert "0.300×" in output.out
    assert "The bar holds." in output.out
    assert output.err == "shoestring: measuring zz-lean (quick)\n"
    assert "\x1b" not in output.out + output.err


def test_json_is_one_document_of_all_systems(lean, capsys):
    assert run(["measure", "zz-lean", "zz-fat", "--json", "--seed", "200"]) == 0
    documents = json.loads(capsys.readouterr().out)
    comparisons = [Comparison.from_dict(document) for document in documents]
    assert [c.system for c in comparisons] == ["zz-lean", "zz-fat"]
    assert [c.holds for c in comparisons] == [True, False]
    assert comparisons[0].rows[0].ratio == 0.25, "the seed reached the experiment"
    assert comparisons[0].seed == 200
    assert comparisons[0].seconds >= 0


def test_check_is_exit_code_1_where_a_bar_falls_short(lean, capsys):
    assert run(["measure", "zz-lean", "--check"]) == 0
    assert run(["measure", "zz-fat"]) == 0, "without --check a measurement is a success"
    capsys.readouterr()
    assert run(["measure", "zz-lean", "zz-fat", "--check"]) == 1
    assert "zz-fat falls short of its bar: peak" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--check", "--save"])
def test_smoke_runs_are_neither_checked_nor_saved(lean, option, capsys, tmp_path):
    assert run(["measure", "zz-lean", "--effort", "smoke"]) == 0
    capsys.readouterr()
    assert run(["measure", "zz-lean", "--effort", "smoke", option]) == 2
    assert f"{option} needs judged bars" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_save_keeps_one_file_per_system(lean, tmp_path, capsys):
    assert run(["measure", "zz-lean", "zz-fat", "--save"]) == 0
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["zz-fat.json", "zz-lean.json"]
    elsewhere = tmp_path / "elsewhere"
    assert run(["measure", "zz-lean", "--save", "--results", str(elsewhere)]) == 0
    assert Comparison.load(elsewhere / "zz-lean.json").holds is True


def test_unknown_systems_are_refused_before_anything_runs(lean, capsys):
    assert run(["measure", "zz-lean", "zz-laen"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "unknown system 'zz-laen'; did you mean zz-lean" in output.err
    assert "measuring" not in output.err


def test_a_system_named_twice_runs_once(lean, capsys):
    assert run(["measure", "zz-lean", "zz-lean", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_fallbacks_become_notes(folder, capsys):
    folder("zz-slow", body='notice_fallback("kernel of zz-slow", "no compiler")')
    assert run(["measure", "zz-slow", "--json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert document["notes"] == ["fallback: kernel of zz-slow: no compiler"]


def test_errors_of_an_experiment_are_one_line(folder, capsys):
    folder("zz-data", body='raise FileNotFoundError("no such text; give --text FILE")')
    assert run(["measure", "zz-data"]) == 2
    assert capsys.readouterr().err.endswith("shoestring: no such text; give --text FILE\n")


def test_interrupt_while_measuring_saves_nothing_of_that_system(folder, tmp_path, capsys):
    folder("zz-first")
    folder("zz-long", body="raise KeyboardInterrupt")
    assert run(["measure", "zz-first", "zz-long", "--save"]) == 130
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["zz-first.json"]
