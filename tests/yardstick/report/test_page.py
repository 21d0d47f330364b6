"""The page: complete, escaped, and in need of nothing outside itself."""

import re
from html.parser import HTMLParser

import pytest

from shoestring.yardstick.report import build_page

VOID = {"meta", "input", "br", "link", "img", "line"}


class Outline(HTMLParser):
    """Checks that tags nest and collects what the tests ask for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.ids, self.links, self.loads, self.text = [], [], [], [], []
        self.feed(page)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" and "href" in found else []
        self.loads += [found[name] for name in ("src", "data") if name in found]
        self.loads += [found["href"]] if tag == "link" else []

    def handle_startendtag(self, tag, attributes):
        assert tag in VOID
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page(entries) -> str:
    return build_page(entries)


def test_is_well_formed_with_an_article_for_each_system(page, entries):
    outline = Outline(page)
    assert {entry.slug for entry in entries} <= set(outline.ids)
    assert len(outline.ids) == len(set(outline.ids))
    assert {link[1:] for link in outline.links if link.startswith("#")} <= set(outline.ids)


def test_needs_no_network_and_no_other_file(page):
    assert Outline(page).loads == []
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", page)
    assert len(page) < 1_500_000


def test_text_is_escaped(page):
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page
    assert "x &lt;b&gt;&amp;" in page


def text_of(page: str, slug: str) -> str:
    article = re.search(rf'<article[^>]*id="{slug}".*?</article>', page, re.DOTALL)[0]
    return " ".join(" ".join(Outline(article).text).split())


def test_claim_stands_beside_its_measurement(page):
    text = text_of(page, "counting")
    assert "The paper says counts faster: 13.4x T4, batch 128" in text
    assert "Measured here: time, lower is better 0.250× 0.220 to 0.290 bar ≤ 0.5× ✓ holds" in text
    assert "100 ms against 400 ms (old way)" in text
    assert "Needs a GPU; the last measurement had none." in text
    assert "Δ ≥ -0.5 %" in text
    assert "seed 1; Sample CPU, 2 of 2 cores" in text


def test_the_figure_in_front_is_the_one_that_the_bar_bounds(entries):
    import dataclasses

    first = entries[0]
    claims = tuple(
        dataclasses.replace(first.claims[0], metric=metric) for metric in ("accuracy", "points lost", "time")
    )
    lost = dataclasses.replace(
        first.comparison.rows[1], metric="points lost", baseline=0.04, method=7.12, ratio=178.0,
        better="higher", bar=3.0, bar_on="value", spread=None,
    )  # fmt: skip
    comparison = dataclasses.replace(first.comparison, rows=(*first.comparison.rows, lost))
    text = text_of(build_page([dataclasses.replace(first, claims=claims, comparison=comparison)]), "counting")
    assert "accuracy, higher is better Δ -0.200 % Δ -0.400 to 0.100 bar Δ ≥ -0.5 % ✓ holds" in text
    assert "points lost, higher is better 7.12 % bar ≥ 3 % ✓ holds" in text
    assert "time, lower is better 0.250×" in text


def test_states_and_missing_measurements_are_said(page):
    assert "falls short" in text_of(page, "blocked")
    assert "256 MiB against 1 GiB (dense counting)" in text_of(page, "blocked")
    assert "shoestring measure future --save" in text_of(page, "future")
    assert "∞" in text_of(page, "bare")


def test_a_row_that_falls_short_shows_even_where_no_claim_asks_for_it(entries):
    import dataclasses

    assert "peak bytes falls short: 0.250×, bar ≤ 0.2×" not in text_of(build_page(entries), "blocked")
    bare = dataclasses.replace(entries[1], claims=())
    assert "✗ peak bytes falls short: 0.250×, bar ≤ 0.2×" in text_of(build_page([bare]), "blocked")


def test_counts_of_the_head(page):
    text = " ".join(" ".join(Outline(page).text).split())
    assert "4 systems 1 hold every bar 1 falls short 1 measured, no bar 1 not measured yet" in text
    assert "1 measured system has no pair of the two" in text


def test_an_empty_scoreboard_is_a_page_too():
    page = build_page([])
    assert "No system has a card yet." in page
    Outline(page)


def test_size_stays_small_with_all_systems(entries):
    import dataclasses

    many = [dataclasses.replace(entries[i % 4], slug=f"system-{i}") for i in range(64)]
    assert len(build_page(many)) < 500_000
