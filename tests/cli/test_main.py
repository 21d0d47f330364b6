"""The frame of the command line: fast help, exit codes, one line for what a person can mend."""

import io
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import shoestring
from shoestring.cli import main as cli
from shoestring.cli.console import never_fail_to_print, print_json, steps
from shoestring.cli.main import VERBS, run


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The command as a person starts it."""
    code = "from shoestring.cli.main import main; main()"
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "80"} | environment,
    )


def test_help_lists_every_verb_and_shows_examples():
    done = shell("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for verb in VERBS:
        assert f"\n  {verb} " in done.stdout
    assert "shoestring measure tensorbleu" in done.stdout
    assert shell().stdout == done.stdout, "no arguments: the same help"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_examples(verb):
    done = shell(verb, "--help")
    assert done.returncode == 0
    assert f"shoestring {verb}" in done.stdout.split("Options:")[0].split("Usage:")[1].split("\n", 1)[1]


def test_version():
    assert shell("--version").stdout == f"shoestring {shoestring.__version__}\n"


def test_python_m_is_the_same_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/__main__.py", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("shoestring", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"shoestring {shoestring.__version__}\n"


def test_help_appears_before_torch_could_be_loaded():
    code = (
        "import sys\n"
        "from shoestring.cli.main import run\n"
        "assert run(['--help']) == 0\n"
        "assert run(['measure', '--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'transformers', 'plotly', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert seconds < 0.5, "of the processor: how busy the machine is does not matter"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["weigh"], "No such command 'weigh'. (shoestring --help"),
        (["systems", "--jason"], "(shoestring systems --help shows examples)"),
        (["measure"], "Missing argument 'SLUG"),
        (["measure", "pychop", "--seed", "x"], "Invalid value for '--seed': "),
        (["measure", "pychop", "--seed", "-1"], "Invalid value for '--seed': "),
        (["measure", "pychop", "--effort", "huge"], "--effort 'huge' is not known; use smoke, quick, full"),
        (["measure", "no-such-system-at-all"], "unknown system 'no-such-system-at-all'"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert run(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("shoestring: ")
    assert output.err.count("\n") == 1
    assert message in output.err


def test_debug_variable_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("SHOESTRING_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown system"):
        run(["measure", "no-such-system-at-all"])


def replaced_app(monkeypatch, error: BaseException) -> None:
    def app(**_):
        raise error

    monkeypatch.setattr(cli, "build_app", lambda: app)


def test_interrupt_is_130(monkeypatch, capsys):
    replaced_app(monkeypatch, KeyboardInterrupt())
    assert run([]) == 130
    assert capsys.readouterr().err == "shoestring: interrupted\n"


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    replaced_app(monkeypatch, AssertionError("a bug"))
    with pytest.raises(AssertionError, match="a bug"):
        run([])


def test_a_message_of_several_lines_becomes_one(monkeypatch, capsys):
    replaced_app(monkeypatch, ValueError("first\n   second"))
    assert run([]) == 2
    assert capsys.readouterr().err == "shoestring: first second\n"


def test_a_reader_that_leaves_early_is_no_error():
    code = "from shoestring.cli.main import main; main(['systems', '--help'])"
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        f'{sys.executable} -u -c "{code}" | true',
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_ctrl_c_in_a_running_measurement(folder, tmp_path):
    folder("zz-endless", body="import time; print('running', flush=True); time.sleep(60)")
    code = (
        f"from shoestring import systems; systems.__path__.append({str(tmp_path / 'modules')!r})\n"
        "from shoestring.cli.main import main; main(['measure', 'zz-endless', '--save', '--json'])"
    )
    path = os.pathsep.join(filter(None, sys.path))
    running = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert running.stdout.readline() == "running\n"
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert out == "", "no half document"
    assert err.endswith("shoestring: interrupted\n")
    assert "Traceback" not in err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "terminal",
    [
        {"COLUMNS": "60", "NO_COLOR": "1"},
        {"COLUMNS": "20"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    ],
)
def test_narrow_colourless_and_ascii_terminals(terminal):
    done = shell("systems", **terminal)
    assert done.returncode == 0, done.stderr
    assert "tensorbleu" in done.stdout
    assert done.stdout.isascii() or "PYTHONIOENCODING" not in terminal
    assert "\x1b" not in done.stdout
    if (width := int(terminal.get("COLUMNS", 80))) == 60:
        assert max(map(len, done.stdout.splitlines())) <= width
    assert shell("fit", "--help", **terminal).returncode == 0


def test_what_an_encoding_has_not_is_no_error(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    never_fail_to_print()
    out.write("naïve → 漢\n")
    print_json({"text": "naïve → 漢"})
    out.flush()
    first, document = out.buffer.getvalue().decode("ascii").split("\n", 1)
    assert first == "na?ve ? ?"
    assert json.loads(document) == {"text": "naïve → 漢"}, "in escapes, nothing is lost"


def test_a_page_that_cannot_be_written(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_RESULTS", str(tmp_path / "results"))
    for path, complaint in {
        tmp_path: "is a folder; name a file in it",
        tmp_path / "no" / "board.html": "does not exist; create it first",
        Path("/dev/null"): "is no regular file; name one that may be replaced",
        tmp_path / ("n" * 250): "File name too long",
    }.items():
        assert run(["report", "--out", str(path)]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert complaint in output.err
        assert output.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert Path("/dev/null").is_char_device()


def test_steps_are_plain_lines_without_a_terminal(capsys):
    with steps("rounding layers", 20) as advance:
        for _ in range(20):
            advance()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0] == "shoestring: rounding layers: 2 of 20"
    assert lines[-1] == "shoestring: rounding layers: 20 of 20"


def test_exit_codes_reach_the_shell():
    done = shell("measure", "no-such-system-at-all")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
