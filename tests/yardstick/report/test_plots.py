"""Geometry of the drawings."""

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import given

from shoestring.yardstick.comparison import Row
from shoestring.yardstick.report.plots import RatioAxis, _log_ticks, _round_ticks, scatter


def row(ratio, **changes) -> Row:
    fields = {"metric": "m", "kind": "time", "unit": "s", "better": "lower", "baseline": 1.0, "method": ratio}
    return Row(**fields | changes)


def test_scatter_puts_cheaper_to_the_right_and_better_below(entries):
    plot = scatter(entries)
    places = {point.entry.slug: point for point in plot.points}
    assert set(places) == {"counting", "blocked"}, "what has no finite pair is not drawn"
    assert places["counting"].x == pytest.approx(places["blocked"].x)
    assert places["counting"].y > places["blocked"].y, "y grows downwards: less is lost"
    assert places["counting"].y < plot.zero
    for point in plot.points:
        assert plot.left <= point.x <= plot.right
        assert plot.top - 1e-6 <= point.y <= plot.bottom + 1e-6


def test_nothing_to_draw(entries):
    assert scatter([]) is None
    assert scatter(entries[2:]) is None


def test_labels_of_one_place_do_not_collide(entries):
    heights = [point.label_y for point in scatter([entries[0]] * 4).points]
    assert all(b - a >= 14 for a, b in itertools.pairwise(sorted(heights)))


@given(st.floats(-1e4, 0), st.floats(0.1, 1e4))
def test_round_ticks_cover_their_range(low, high):
    ticks = _round_ticks(low, high)
    assert ticks[0] <= low + 1e-8 * (high - low)
    assert ticks[-1] >= high - 1e-8 * (high - low)
    assert 0 in ticks
    assert 2 <= len(ticks) <= 12


def test_log_ticks():
    assert _log_ticks(0.9, 22.0) == [1, 2, 5, 10, 20]
    assert _log_ticks(1.0, 20_000.0) == [1, 10, 100, 1000, 10_000]


def test_gauge_places_are_logarithmic_and_inside():
    axis = RatioAxis([row(0.01, bar=0.1, paper_ratio=0.001), row(100.0)])
    assert axis.place(0.001) == 3
    assert axis.place(100) == 97
    assert axis.place(0.1) - axis.place(0.01) == pytest.approx(axis.place(1) - axis.place(0.1))
    gauge = axis.gauge(row(0.01, bar=0.1, paper_ratio=0.001))
    assert (gauge.low, gauge.high) == (gauge.measured, axis.parity)
    assert gauge.paper < gauge.measured < gauge.bar < axis.parity
    assert axis.place(1e9) == 97, "what lies beyond stands at the end"


def test_gauge_draws_no_bar_that_is_not_on_the_ratio_and_no_ratio_that_is_not_positive():
    axis = RatioAxis([])
    assert axis.gauge(row(0.5, bar=0.2, bar_on="difference")).bar is None
    assert axis.gauge(row(float("inf"))) is None
    assert axis.gauge(row(0.0)) is None
    assert axis.gauge(row(-1.0)) is None
