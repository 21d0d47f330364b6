"""A comparison in a terminal: a table, and the ratios drawn on a logarithmic axis."""

import math

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shoestring.yardstick.comparison import Comparison, Row
from shoestring.yardstick.quantities import format_quantity, format_ratio, three_digits

_STYLES = {True: "green", False: "bold red", None: "cyan"}
_ARROWS = {"lower": "↓", "higher": "↑"}


def render(comparison: Comparison, columns: int = 80) -> RenderableType:
    """Heading, table, plot, verdict, notes and the machine, for a console that wide."""
    parts: list[RenderableType] = [_heading(comparison), table(comparison, columns)]
    plot = ratio_plot(comparison, columns)
    if plot is not None:
        parts.append(Padding(plot, (0, 0, 1, 1)))
    parts.append(Padding(_closing(comparison), (0, 0, 0, 1)))
    return Group(*parts)


def table(comparison: Comparison, columns: int = 80) -> Table:
    """One line per row; no column for what no row has, nor for the paper's ratio where it is narrow."""
    rows = comparison.rows
    with_paper = columns >= 76 and any(row.paper_ratio is not None for row in rows)
    with_bar = any(row.bar is not None for row in rows)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    if with_bar:
        grid.add_column("", no_wrap=True)
    grid.add_column("metric", overflow="fold", min_width=12)
    for name in ("baseline", "method", "ratio"):
        grid.add_column(name, justify="right", no_wrap=True)
    if with_paper:
        grid.add_column("paper", justify="right", no_wrap=True)
    if with_bar:
        grid.add_column("bar", justify="right", no_wrap=True)
    for row in rows:
        cells = [
            _metric(row),
            Text(format_quantity(row.baseline, row.unit)),
            Text(format_quantity(row.method, row.unit)),
            _ratio(row),
        ]
        if with_paper:
            cells.append(Text(format_ratio(row.paper_ratio)))
        if with_bar:
            cells = [_verdict(comparison, row), *cells, Text(bar_text(row))]
        grid.add_row(*cells)
    return grid


def bar_text(row: Row) -> str:
    """The bar as a bound: "≤ 0.5×", "≥ −1 %" on a difference written as "Δ"."""
    if row.bar is None:
        return "–"
    sign = "≤" if row.better == "lower" else "≥"
    if row.bar_on == "ratio":
        return f"{sign} {row.bar:.4g}×"
    # A bar is a chosen figure: it is shown as chosen, without digits that were never meant.
    plain = row.unit not in ("B", "s") and not row.unit.startswith("FLOP")
    shown = f"{row.bar:.4g} {row.unit}".strip() if plain else format_quantity(row.bar, row.unit)
    return f"{'Δ ' if row.bar_on == 'difference' else ''}{sign} {shown}"


def ratio_plot(comparison: Comparison, columns: int = 80) -> Text | None:
    """Each ratio as a line from parity, with the bar (│) and the paper's ratio (◇) on the same axis.

    None where there is nothing to see: fewer than one positive ratio, or no room for a line.
    """
    drawn = [row for row in comparison.rows if _drawable(row.ratio)]
    if not drawn:
        return None
    marks = [m for row in drawn for m in (row.ratio, row.paper_ratio, _bar_ratio(row)) if _drawable(m)]
    logs = [0.0, *(math.log(float(m)) for m in marks if m is not None)]
    low, high = min(logs), max(logs)
    if low == high:
        return None  # all at parity: nothing to see
    label = min(24, max(len(row.metric) for row in drawn))
    width = min(60, columns - label - len(" 0.0000× ↓ ") - 2)
    if width < 12:
        return None

    def column(value: float | int) -> int:
        return round((math.log(value) - low) / (high - low) * (width - 1))

    text = Text()
    for row in drawn:
        assert row.ratio is not None
        line = _line(column(row.ratio), column(1.0), width)
        for mark, sign in ((row.paper_ratio, "◇"), (_bar_ratio(row), "│")):
            if mark is not None and _drawable(mark):
                line[column(mark)] = sign
        line[column(row.ratio)] = "●"
        name = row.metric if len(row.metric) <= label else row.metric[: label - 1] + "…"
        text.append(f"{name:<{label}} ")
        text.append("".join(line), style=_STYLES[comparison.verdict(row)])
        text.append(f" {format_ratio(row.ratio)} {_ARROWS[row.better]}\n")
    ends = three_digits(math.exp(low)), three_digits(math.exp(high))
    axis = f"{ends[0]}×".ljust(width - len(ends[1]) - 1) + f"{ends[1]}×"
    text.append(" " * (label + 1) + axis + "\n", style="dim")
    text.append(" " * (label + 1) + "● measured  ┼ parity  │ bar  ◇ paper", style="dim")
    return text


def _line(place: int, parity: int, width: int) -> list[str]:
    line = [" "] * width
    for column in range(min(place, parity), max(place, parity) + 1):
        line[column] = "━"
    line[parity] = "┼"
    return line


def _drawable(value: float | int | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _bar_ratio(row: Row) -> float | int | None:
    return row.bar if row.bar_on == "ratio" else None


def _heading(comparison: Comparison) -> Text:
    text = Text()
    text.append(comparison.system, style="bold")
    text.append(f": {comparison.method} against {comparison.baseline}\n")
    text.append(comparison.work, style="dim")
    return text


def _metric(row: Row) -> Text:
    text = Text(f"{row.metric} {_ARROWS[row.better]}")
    if row.against:
        text.append(f"\nagainst {row.against}", style="dim")
    return text


def _ratio(row: Row) -> Text:
    text = Text(format_ratio(row.ratio), style="bold")
    if row.spread is not None:
        sign = "Δ " if row.bar_on == "difference" else ""
        low, high = (three_digits(end) for end in row.spread)
        text.append(f"\n{sign}[{low}, {high}]", style="not bold dim")
    return text


def _verdict(comparison: Comparison, row: Row) -> Text:
    holds = comparison.verdict(row)
    words = {True: "✓", False: "✗", None: "" if row.bar is None else "?"}
    return Text(words[holds], style=_STYLES[holds] if holds is not None else "dim")


def _closing(comparison: Comparison) -> Text:
    text = Text()
    judged = [row for row in comparison.rows if comparison.verdict(row) is not None]
    if comparison.holds is None:
        why = "a smoke run judges no bar" if not comparison.is_judged else "no row has a bar"
        text.append(f"Not judged: {why}.\n", style="dim")
    elif comparison.holds:
        text.append(
            f"All {len(judged)} bars hold.\n" if len(judged) > 1 else "The bar holds.\n", style="green"
        )
    else:
        short = ", ".join(row.metric for row in comparison.short)
        many = (
            f"{len(comparison.short)} of {len(judged)} bars fall short"
            if len(judged) > 1
            else "The bar falls short"
        )
        text.append(f"{many}: {short}.\n", style="bold red")
    for note in comparison.notes:
        text.append(f"note: {note}\n", style="yellow")
    here = comparison.environment
    took = f", {format_quantity(comparison.seconds, 's')}" if comparison.seconds is not None else ""
    text.append(
        f"{comparison.effort} effort, seed {comparison.seed}{took}; {here.processor}, "
        f"{here.threads} of {here.cores} cores, torch {here.packages.get('torch', '?')}",
        style="dim",
    )
    return text
