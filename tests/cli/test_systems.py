"""`shoestring systems` over sample systems."""

import json
import os
import subprocess
import sys

from shoestring.cli.main import run


def test_groups_by_saving_and_tells_the_state(lean, capsys):
    run(["measure", "zz-fat", "--save"])
    capsys.readouterr()
    assert run(["systems"]) == 0
    text = capsys.readouterr().out
    energy, memory = text.index("\nsaves energy"), text.index("\nsaves memory")
    assert energy < text.index("zz-fat") < memory < text.index("zz-lean")
    assert "falls short" in text
    assert "not measured" in text
    assert "quick: peak 0.300×" in text
    assert "also saves time" in text
    assert max(map(len, text.splitlines())) <= 80


def test_json(lean, capsys):
    run(["measure", "zz-lean", "--save"])
    capsys.readouterr()
    assert run(["systems", "--json"]) == 0
    found = {system["slug"]: system for system in json.loads(capsys.readouterr().out)}
    assert found["zz-lean"]["state"] == "holds"
    assert found["zz-lean"]["measured"]["rows"][0]["ratio"] == 0.3
    assert found["zz-fat"]["state"] == "not measured"
    assert found["zz-fat"]["measured"] is None
    assert found["zz-fat"]["saves"] == ["energy", "time"]


def test_a_broken_result_is_named(lean, tmp_path, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "zz-lean.json").write_text("{}")
    assert run(["systems"]) == 2
    assert "zz-lean.json: the document lacks schema, system" in capsys.readouterr().err


def in_a_new_process(code: str) -> None:
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr


def test_no_card_loads_transformers():
    in_a_new_process(
        "import sys\n"
        "from shoestring.systems import all_systems\n"
        "import shoestring.compression, shoestring.generation, shoestring.training\n"
        "assert all_systems()\n"
        "assert 'torch' in sys.modules, 'cards are made of torch'\n"
        "assert 'transformers' not in sys.modules, 'half a second that nobody asked for'\n"
    )


def test_the_list_and_the_scoreboard_are_shown_without_torch(lean, tmp_path, capsys):
    run(["measure", "zz-lean", "--save"])
    assert run(["systems"]) == 0, "reads the cards and keeps them"
    page = str(tmp_path / "board.html")
    in_a_new_process(
        "import sys\n"
        "from shoestring import systems\n"
        f"systems.__path__.append({str(tmp_path / 'modules')!r})\n"
        "from shoestring.cli.main import run\n"
        "assert run(['systems']) == 0\n"
        "assert run(['systems', '--json']) == 0\n"
        f"assert run(['report', '--out', {page!r}]) == 0\n"
        "assert run(['measure', 'zz-laen']) == 2, 'unknown'\n"
        "heavy = {'torch', 'numpy', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
