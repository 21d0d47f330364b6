"""What a scoreboard line derives from a comparison, by hand."""

import pytest

from shoestring.yardstick.report import State


def by_slug(entries):
    return {entry.slug: entry for entry in entries}


def test_states(entries):
    states = {slug: entry.state for slug, entry in by_slug(entries).items()}
    assert states == {
        "counting": State.HOLDS,
        "blocked": State.SHORT,
        "bare": State.MEASURED,
        "future": State.UNMEASURED,
    }


def test_cost_saved_and_quality_lost(entries):
    found = by_slug(entries)
    assert found["counting"].cost_saved == pytest.approx(4)
    assert found["counting"].quality_lost == pytest.approx(1 - 87.1 / 87.3)
    assert found["blocked"].cost_saved == pytest.approx(4)
    assert found["blocked"].quality_lost == pytest.approx(0.03), "a loss that rises is quality lost"
    assert found["bare"].cost_saved == 0, "an infinite cost saves nothing"
    assert found["bare"].quality_lost is None
    assert found["future"].cost_saved is None


def test_headline_and_row_of_a_claim(entries):
    found = by_slug(entries)
    assert found["counting"].headline.metric == "time"
    said, gpu = found["counting"].claims
    assert found["counting"].row_of(said).metric == "time"
    assert found["counting"].row_of(gpu) is None
    assert found["future"].headline is None
