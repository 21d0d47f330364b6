"""The table and the plot as characters."""

import io
import math

import pytest
from rich.console import Console

from shoestring.yardstick.comparison import Comparison, Effort
from shoestring.yardstick.terminal import ratio_plot, render


def printed(comparison: Comparison, columns: int = 80) -> str:
    console = Console(file=io.StringIO(), width=columns)
    console.print(render(comparison, columns))
    return console.file.getvalue()


@pytest.fixture
def counting(entries) -> Comparison:
    return entries[0].comparison


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_fits_and_nothing_is_cut(counting, columns):
    text = printed(counting, columns)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= columns
    assert "…" not in text
    for figure in ("400 ms", "100 ms", "0.250×", "[0.220, 0.290]", "0.0746×", "≤ 0.5×", "Δ ≥ -0.5 %"):
        assert figure in text
    assert "All 2 bars hold." in text
    assert "quick effort, seed 1; Sample CPU, 2 of 2 cores, torch 2.13.0" in " ".join(text.split())


def test_is_plain_text_where_there_is_no_terminal(counting):
    assert "\x1b" not in printed(counting)


def test_narrow_terminals_are_not_overrun(counting):
    assert max(len(line.rstrip()) for line in printed(counting, 60).splitlines()) <= 60


def test_what_falls_short_is_named(entries):
    text = printed(entries[1].comparison)
    assert "✗" in text
    assert "The bar falls short: peak bytes." in text


def test_smoke_runs_and_missing_bars_are_not_judged(counting, entries):
    import dataclasses

    assert "a smoke run judges no bar" in printed(dataclasses.replace(counting, effort=Effort.SMOKE))
    assert "no row has a bar" in printed(entries[2].comparison)


def test_notes_are_shown(counting):
    import dataclasses

    assert "note: fallback: no compiler" in printed(
        dataclasses.replace(counting, notes=("fallback: no compiler",))
    )


def test_plot_places_are_logarithmic(counting):
    """Marks at 0.0746 (paper), 0.25 (measured), 0.5 (bar) and 1: the first and the last are the ends."""
    line = ratio_plot(counting, columns=80).plain.splitlines()[0]
    drawing = line[len("accuracy ") :]
    paper, measured, bar, parity = (drawing.index(mark) for mark in "◇●│┼")
    width = parity - paper
    assert paper == 0
    assert (measured - paper) / width == pytest.approx(
        math.log(0.25 / 0.0746) / math.log(1 / 0.0746), abs=0.02
    )
    assert (bar - paper) / width == pytest.approx(math.log(0.5 / 0.0746) / math.log(1 / 0.0746), abs=0.02)
    assert drawing[measured + 1] == "━"


def test_nothing_to_plot(entries):
    assert ratio_plot(entries[2].comparison) is None, "an infinite ratio has no place"
    assert ratio_plot(entries[0].comparison, columns=30) is None, "no room"
