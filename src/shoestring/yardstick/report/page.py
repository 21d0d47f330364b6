"""The scoreboard page: one HTML file, nothing beside it, no network."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from shoestring.yardstick.comparison import Row
from shoestring.yardstick.quantities import format_quantity, format_ratio, three_digits
from shoestring.yardstick.report.entry import Entry, State
from shoestring.yardstick.report.plots import RatioAxis, scatter
from shoestring.yardstick.terminal import bar_text

_HERE = Path(__file__).parent
_CLASSES = {
    State.HOLDS: "good",
    State.SHORT: "bad",
    State.MEASURED: "plain",
    State.UNMEASURED: "none",
}


def build_page(entries: Sequence[Entry]) -> str:
    """The scoreboard of these systems as an HTML document that works from disk.

    Everything is inside: style, drawings (SVG) and the few lines of script that filter the list. Text is
    escaped; figures that are not finite are spelt out.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "ratio": format_ratio,
        "bar": bar_text,
        "value": _value,
        "judged": _judged,
        "spread": _spread,
        "duration": _duration,
    }
    measured = [entry for entry in entries if entry.comparison]
    rows = [row for entry in measured if entry.comparison for row in entry.comparison.rows]
    plot = scatter(entries)
    return environment.get_template("scoreboard.html.j2").render(
        axis=RatioAxis(rows),
        classes=_CLASSES,
        counts=Counter(entry.state for entry in entries),
        entries=entries,
        latest=max((e.comparison.environment.date[:10] for e in measured if e.comparison), default=None),
        plot=plot,
        small_plot=scatter(entries, width=360, height=330),
        savings=sorted({saving for entry in entries for saving in entry.saves}),
        script=Markup((_HERE / "scoreboard.js").read_text(encoding="utf-8")),
        State=State,
        style=Markup(page_style()),
        undrawn=len(measured) - (len(plot.points) if plot else 0),
    )


def page_style() -> str:
    """The style sheet of all pages of this library."""
    return (_HERE / "scoreboard.css").read_text(encoding="utf-8")


def _value(number: float | int | None, row: Row) -> str:
    return format_quantity(number, row.unit)


def _judged(row: Row) -> str:
    """What the bar bounds, so that it stands beside its bar; without a bar the ratio, or else the value."""
    if row.bar is not None and row.bar_on == "difference":
        return f"Δ {format_quantity(row.difference, row.unit)}"
    if row.ratio is None or (row.bar is not None and row.bar_on == "value"):
        return format_quantity(row.method, row.unit)
    return format_ratio(row.ratio)


def _spread(row: Row) -> str:
    if row.spread is None:
        return ""
    low, high = (three_digits(end) for end in row.spread)
    return f"{'Δ ' if row.bar_on == 'difference' else ''}{low} to {high}"


def _duration(seconds: float | None) -> str:
    return format_quantity(seconds, "s")
