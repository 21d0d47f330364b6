"""What all verbs share: exit codes, consoles, JSON on stdout, progress on stderr."""

import enum
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console


ResultsFolder = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Saved results [default: $SHOESTRING_RESULTS, else ./results]."),
]


class Exit(enum.IntEnum):
    """The exit codes."""

    DONE = 0
    SHORT = 1
    """A bar or a budget was not met."""
    BAD_INPUT = 2
    INTERRUPTED = 130


def out() -> "Console":
    """The console for results. Without a terminal it writes 80 plain columns (or `$COLUMNS`)."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def errors() -> "Console":
    """The console for progress and complaints."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_json(document: Any) -> None:
    """The one JSON document of a `--json` run; in escapes where stdout cannot write every character."""
    import json

    escaped = not is_unicode(sys.stdout)
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=escaped, allow_nan=False) + "\n")


def is_unicode(stream: Any) -> bool:
    """Whether a text stream can write every character."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def never_fail_to_print() -> None:
    """Let stdout and stderr write `?` for what their encoding has not, instead of failing half-way."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and not is_unicode(stream):
            stream.reconfigure(errors="replace")


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say on stderr that something long runs: a spinner with the time, or a plain line to a file."""
    console = errors()
    if not console.is_terminal:
        print(f"shoestring: {what}", file=sys.stderr, flush=True)
        yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(what)
        yield


@contextmanager
def steps(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Count `total` steps on stderr; call what is given once after each.

    A bar with the time left on a terminal, elsewhere a plain line at each tenth.
    """
    console = errors()
    if console.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda: progress.advance(task)
        return
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if done * 10 // total > (done - 1) * 10 // total:
            print(f"shoestring: {what}: {done} of {total}", file=sys.stderr, flush=True)

    yield advance


@contextmanager
def staged_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Progress of work in stages, each called with (stage, steps done, steps there are).

    One bar a stage on a terminal, elsewhere a plain line at each third of a stage.
    """
    console = errors()
    if not console.is_terminal:
        thirds: dict[str, int] = {}

        def say(stage: str, done: int, total: int) -> None:
            third = done * 3 // max(total, 1)
            if thirds.get(stage) != third:
                thirds[stage] = third
                print(f"shoestring: {stage}: {done} of {total}", file=sys.stderr, flush=True)

        yield say
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


def hide_loading_bars() -> None:
    """One spinner is enough. Call it before anything imports tqdm, which looks at the environment once."""
    os.environ.setdefault("TQDM_DISABLE", "1")


def debugging() -> bool:
    """Whether tracebacks are wanted: `SHOESTRING_DEBUG` is set to anything but nothing or 0."""
    return os.environ.get("SHOESTRING_DEBUG", "") not in ("", "0")
