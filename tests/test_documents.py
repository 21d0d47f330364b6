"""README and docs name what exists: commands and their options, imports, files."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer

from shoestring.cli.main import build_app

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
STARTS = ("shoestring ", ".venv/bin/shoestring ")


def code_blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"```(\w*)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[str]:
    """Every line that starts our command, in blocks of README and docs and in the help of the verbs."""
    blocks = [text for page in PAGES for language, text in code_blocks(page) if language in ("", "bash")]
    blocks += [command.help or "" for command in COMMANDS.values()]
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith(STARTS) and "VERB" not in line})


COMMANDS = typer.main.get_command(build_app()).commands


def words(line: str) -> list[str]:
    """The arguments of a line as a shell would cut them: no comment, no explanation in a column, no pipe."""
    line = re.split(r"\s{2,}(?=[a-z])| [|<>] ", line)[0]
    return shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("line", commands())
def test_a_command_that_is_shown_is_understood(line):
    verb, *arguments = words(line)
    COMMANDS[verb].make_context(verb, arguments, resilient_parsing=False)


def test_there_are_commands_to_check():
    assert len(commands()) > 30


@pytest.mark.parametrize(("page", "name"), list(zip(PAGES, NAMES, strict=True)), ids=NAMES)
def test_imports_in_snippets_work(page, name):
    for language, text in code_blocks(page):
        if language != "python":
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(compile(ast.Module([node], []), name, "exec"), {})


@pytest.mark.parametrize(("page", "name"), list(zip(PAGES, NAMES, strict=True)), ids=NAMES)
def test_links_lead_to_files(page, name):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("name", ["README.md", *(n for n in NAMES if n.startswith("docs/"))])
def test_scripts_and_results_that_are_named_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for path in re.findall(r"\b(?:benchmarks|examples|results|docs)/[\w/.-]*\w\.(?:py|json|md|png)", text):
        assert (ROOT / path).exists(), path
