"""The command `shoestring`: collects the verbs, turns errors into exit codes.

A verb is a module with a function of its own name; adding one is a line in VERBS. Verbs import what they need
when they run: the help appears before torch could be loaded.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import shoestring
from shoestring.cli.console import Exit, debugging, never_fail_to_print
from shoestring.errors import ShoestringError

VERBS = (
    "fit",
    "generate",
    "measure",
    "report",
    "serve",
    "systems",
    "train",
)

HELP = """Deep learning on a small budget: make a model fit, and prove what it cost.

The main job is `fit`: a model and a budget in, a model that meets it out, with the proof inside. Each
published system has a card as well: what its paper claims, and one experiment that measures it here.

\b
    shoestring fit smollm2-135m --memory 64MiB --out small
    shoestring generate small "A budget is"
    shoestring systems                     what there is, and how it last measured
    shoestring measure tensorbleu          method against baseline, on this machine
    shoestring report --out board.html     the scoreboard of all saved results
    shoestring train                       small models that can be trained here

`shoestring VERB --help` shows examples of each. Exit codes: 0 done, 1 a bar or budget not met, 2 bad input.
"""


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"shoestring {shoestring.__version__}")
        raise typer.Exit
    return wanted


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """What stands before the verb."""


def build_app() -> typer.Typer:
    """The command line with all its verbs."""
    app = typer.Typer(
        help=HELP,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for verb in VERBS:
        app.command(verb)(getattr(importlib.import_module(f"shoestring.cli.{verb}"), verb))
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a bar or budget not met, 2 bad input, 130 interrupted."""
    never_fail_to_print()
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code. What a person can mend is one line on stderr."""
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = int(build_app()(args=arguments, standalone_mode=False, prog_name="shoestring") or Exit.DONE)
    except (KeyboardInterrupt, typer.Abort):
        code = Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would complain again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
    except Exception as error:
        message = _message(error)
        if message is None or debugging():
            raise
        print(f"shoestring: {message}", file=sys.stderr)
        return Exit.BAD_INPUT
    if code == Exit.INTERRUPTED:  # some versions of typer turn Ctrl-C into this code themselves
        print("shoestring: interrupted", file=sys.stderr)
    return code


def _message(error: Exception) -> str | None:
    """The line for an error that the person can mend; None for one that only we can."""
    if hasattr(error, "format_message"):  # typer's own: a missing argument, an unknown option
        verb = getattr(getattr(error, "ctx", None), "command_path", "shoestring")
        return f"{_one_line(error.format_message())} ({verb} --help shows examples)"
    if isinstance(error, ValueError | OSError | ImportError | ShoestringError):
        # Raised at the boundary of the library, where the message says what would be right.
        return _one_line(str(error)) or type(error).__name__
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())
