"""Where the points, ticks and marks of the page's drawings lie. Pure geometry; the template draws."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shoestring.yardstick.comparison import Row
from shoestring.yardstick.quantities import format_ratio
from shoestring.yardstick.report.entry import Entry


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in units of the drawing."""

    place: float
    label: str


@dataclass(frozen=True)
class Point:
    """A system in the scatter."""

    x: float
    y: float
    label_x: float
    label_y: float
    anchor: str
    entry: Entry


@dataclass(frozen=True)
class Scatter:
    """Quality lost (upwards, percent) against cost saved (to the right, logarithmic)."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    zero: float
    """Height of "nothing lost"."""


def scatter(entries: Sequence[Entry], width: int = 1040, height: int = 400) -> Scatter | None:
    """Where each system lies that has both a finite cost and a finite quality ratio; None when none has."""
    data = [
        (entry, cost, 100 * lost)
        for entry in entries
        if (cost := entry.cost_saved) is not None and (lost := entry.quality_lost) is not None
        if math.isfinite(cost) and cost > 0 and math.isfinite(lost)
    ]
    if not data:
        return None
    left, right, top, bottom = 58.0, width - 24.0, 22.0, height - 46.0
    costs = [cost for _, cost, _ in data]
    low, high = min([1.0, *costs]), max([2.0, *costs])
    span = math.log(high / low)
    low, high = low / math.exp(0.06 * span) if low < 1 else low, high * math.exp(0.12 * span)
    y_ticks = _round_ticks(min([0.0, *(lost for *_, lost in data)]), max([1.0, *(lost for *_, lost in data)]))

    def x(cost: float) -> float:
        return left + (right - left) * math.log(cost / low) / math.log(high / low)

    def y(lost: float) -> float:
        return bottom - (bottom - top) * (lost - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    placed = _with_labels([(entry, x(cost), y(lost)) for entry, cost, lost in data], right)
    return Scatter(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        points=tuple(placed),
        x_ticks=tuple(Tick(x(value), format_ratio(value)) for value in _log_ticks(low, high)),
        y_ticks=tuple(Tick(y(value), f"{value:g} %".replace("-", "−")) for value in y_ticks),
        zero=y(0.0),
    )


def _with_labels(places: Iterable[tuple[Entry, float, float]], right: float) -> list[Point]:
    """Labels stand right of their point (left of it near the edge) and step down where they would collide."""
    points: list[Point] = []
    for entry, x, y in sorted(places, key=lambda place: (place[2], place[1])):
        extent = 7.2 * len(entry.slug) + 10
        anchor = "start" if x + extent <= right + 16 else "end"
        start = x + 10 if anchor == "start" else x - extent
        label_y = y + 4
        for other in points:
            other_extent = 7.2 * len(other.entry.slug)
            other_start = other.label_x if other.anchor == "start" else other.label_x - other_extent
            overlaps = start < other_start + other_extent and other_start < start + extent
            if overlaps and abs(label_y - other.label_y) < 14:
                label_y = other.label_y + 14
        points.append(Point(x, y, x + 10 if anchor == "start" else x - 10, label_y, anchor, entry))
    return points


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 in each decade, or only the powers of ten when the axis is long."""
    steps: tuple[int, ...] = (1,) if high / low > 1000 else (1, 2, 5)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [step * 10.0**decade for decade in decades for step in steps]
    return [value for value in values if low * 0.999 <= value <= high * 1.001]


def _round_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that cover [low, high]."""
    raw = (high - low) / wanted
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(s * size for s in (1, 2, 2.5, 5, 10) if s * size >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Gauge:
    """One ratio on the axis that all gauges of the page share, in percent of its width."""

    measured: float
    low: float
    high: float
    bar: float | None
    paper: float | None


class RatioAxis:
    """The logarithmic axis of all ratios on the page, parity included; what lies beyond stands at its end."""

    def __init__(self, rows: Iterable[Row], limit: float = 1000.0) -> None:
        marks = [1.0]
        for row in rows:
            bar = row.bar if row.bar_on == "ratio" else None
            marks += [float(m) for m in (row.ratio, bar, row.paper_ratio) if m is not None and _positive(m)]
        self.low = max(min([*marks, 0.5]), 1 / limit)
        self.high = min(max([*marks, 2.0]), limit)

    def place(self, ratio: float | int) -> float:
        """Percent of the width, 3 to 97."""
        inside = min(max(ratio, self.low), self.high)
        return 3 + 94 * math.log(inside / self.low) / math.log(self.high / self.low)

    @property
    def parity(self) -> float:
        """Where a ratio of 1 lies."""
        return self.place(1)

    def gauge(self, row: Row) -> Gauge | None:
        """The marks of a row; None when its ratio cannot be drawn."""
        if not _positive(row.ratio) or row.ratio is None:
            return None
        measured = self.place(row.ratio)
        bar = row.bar if row.bar_on == "ratio" else None
        return Gauge(
            measured=measured,
            low=min(measured, self.parity),
            high=max(measured, self.parity),
            bar=self.place(bar) if bar is not None and _positive(bar) else None,
            paper=self.place(row.paper_ratio)
            if row.paper_ratio is not None and _positive(row.paper_ratio)
            else None,
        )


def _positive(value: float | int | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0
