"""Cards state their claims; parts must exist."""

import dataclasses

import pytest

from shoestring.systems.card import Card, Claim
from shoestring.systems.registry import all_systems

CLAIM = Claim(
    text="counts n-grams four times as fast",
    figure="4x",
    setting="one GPU",
    metric="time",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=0.25,
    bar=0.5,
)
CARD = Card(
    slug="sample-one",
    title="A sample",
    paper="Nobody 2025, A Sample",
    year=2025,
    authors_code=None,
    saves=("time",),
    parts=("shoestring.yardstick.comparison.Row",),
    claims=(CLAIM,),
)


def test_a_row_takes_its_bar_and_the_papers_ratio_from_the_claim():
    row = CARD.claim("time").row(baseline=8, method=3, spread=(0.3, 0.45), against="the loop")
    assert (row.metric, row.unit, row.better, row.kind) == ("time", "s", "lower", "time")
    assert (row.paper_ratio, row.bar, row.bar_on) == (0.25, 0.5, "ratio")
    assert (row.ratio, row.spread, row.against) == (0.375, (0.3, 0.45), "the loop")
    assert row.holds is True


def test_unknown_metric_lists_the_claims():
    with pytest.raises(ValueError, match="sample-one: no claim has the metric 'speed'; there are 'time'"):
        CARD.claim("speed")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slug": "Sample_One"}, "slug='Sample_One' must be lower-case words joined by hyphens"),
        ({"saves": ("money",)}, "saves 'money'; known savings are 'memory'"),
        ({"saves": ()}, "saves is empty"),
        ({"parts": ()}, "parts is empty"),
        ({"claims": ()}, "claims is empty"),
        ({"claims": (CLAIM, CLAIM)}, "two claims answer with the metric 'time'"),
    ],
)
def test_bad_cards(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CARD, **changes)


def test_parts_resolve_to_what_they_name():
    from shoestring.yardstick import comparison

    card = dataclasses.replace(
        CARD, parts=("shoestring.yardstick.comparison", "shoestring.yardstick.comparison.Row.holds")
    )
    assert list(card.resolve_parts().values()) == [comparison, comparison.Row.holds]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("shoestring.yardstick.comparison.Missing", r"comparison has no Missing"),
        ("shoestring.no_such_storey.Thing", r"part 'shoestring.no_such_storey.Thing' does not exist"),
        ("nowhere.at.all", r"no module nowhere"),
    ],
)
def test_a_part_that_does_not_exist_is_named(part, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CARD, parts=(part,)).resolve_parts()


def test_the_parts_of_every_card_exist():
    for system in all_systems().values():
        assert len(system.card.resolve_parts()) == len(system.card.parts)
