"""Fallbacks are said aloud, once: no slow path is taken in silence."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_said: dict[tuple[str, str], None] = {}
_recorders: list[list[str]] = []


def notice_fallback(what: str, reason: str) -> None:
    """Say on stderr, once per process, that `what` runs a slower or weaker path because of `reason`.

    Whoever records with `record_fallbacks` is told each time, so that a report can list what happened.
    """
    line = f"{what}: {reason}"
    for recorder in _recorders:
        if line not in recorder:
            recorder.append(line)
    if (what, reason) not in _said:
        _said[what, reason] = None
        print(f"shoestring: fallback: {line}", file=sys.stderr)


@contextmanager
def record_fallbacks() -> Iterator[list[str]]:
    """Collect the fallbacks taken inside the block, for a report."""
    recorder: list[str] = []
    _recorders.append(recorder)
    try:
        yield recorder
    finally:
        _recorders.remove(recorder)
