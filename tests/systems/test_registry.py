"""The registry finds modules with a card and nothing else."""

import sys
import textwrap

import pytest

from shoestring import systems
from shoestring.systems.registry import UnknownSystem, all_systems, find_system

MODULE = """
    from shoestring.systems.card import Card, Claim
    claim = Claim(text="t", figure="1x", setting="s", metric="m", kind="time", unit="s", better="lower")
    card = Card(slug="{slug}", title="T", paper="P", year=2025, authors_code=None, saves=("time",),
                parts=("shoestring",), claims=(claim,))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose modules count as modules of the storey."""
    monkeypatch.setattr(systems, "__path__", [*systems.__path__, str(tmp_path)])

    def add(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))

    yield add
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(f"{systems.__name__}.{path.stem}", None)


def test_finds_cards_by_slug(folder):
    folder(
        "zz_sample", MODULE.format(slug="zz-sample") + "    def measure(effort, seed): return (effort, seed)"
    )
    folder("zz_helper", "x = 1")
    found = find_system("zz-sample")
    assert found.card.title == "T"
    assert found.measure("quick", 3) == ("quick", 3)
    assert list(all_systems())[-1] == "zz-sample"
    assert "zz-helper" not in all_systems()
    assert "card" not in all_systems()


def test_unknown_slug_offers_the_near_ones(folder):
    folder("zz_sample", MODULE.format(slug="zz-sample") + "    def measure(effort, seed): ...")
    with pytest.raises(UnknownSystem, match="unknown system 'zz-sampel'; did you mean zz-sample") as caught:
        find_system("zz-sampel")
    assert caught.value.near == ["zz-sample"]
    with pytest.raises(UnknownSystem, match="there are .*zz-sample"):
        find_system("qqqqqqqq")
    for not_a_system in ("card", "zz_sample", "../card", ""):
        with pytest.raises(UnknownSystem):
            find_system(not_a_system)


def test_a_card_in_the_wrong_file_is_an_error(folder):
    folder("zz_other", MODULE.format(slug="zz-sample"))
    with pytest.raises(TypeError, match="holds the card 'zz-sample'; its file must be named after it"):
        all_systems()


def test_a_card_without_measure_is_an_error(folder):
    folder("zz_sample", MODULE.format(slug="zz-sample"))
    with pytest.raises(TypeError, match=r"no function measure\(effort, seed\)"):
        find_system("zz-sample")
