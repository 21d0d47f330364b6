"""The registry finds modules with a card and nothing else."""

import sys
import textwrap

import pytest

from shoestring import systems
from shoestring.systems import registry
from shoestring.systems.registry import UnknownSystem, all_cards, all_systems, find_system

MODULE = """
    from shoestring.systems.card import Card, Claim
    claim = Claim(text="t", figure="1x", setting="s", metric="m", kind="time", unit="s", better="lower")
    card = Card(slug="{slug}", title="T", paper="P", year=2025, authors_code=None, saves=("time",),
                parts=("shoestring",), claims=(claim,))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose modules count as modules of the storey."""
    modules = tmp_path / "modules"
    modules.mkdir()
    monkeypatch.setattr(systems, "__path__", [*systems.__path__, str(modules)])
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))

    def add(name: str, text: str) -> None:
        (modules / f"{name}.py").write_text(textwrap.dedent(text))

    yield add
    for path in modules.glob("*.py"):
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
    with pytest.raises(TypeError, match="holds the card 'zz-sample'; its file or folder must be"):
        all_systems()


def test_a_card_without_measure_is_an_error(folder):
    folder("zz_sample", MODULE.format(slug="zz-sample"))
    with pytest.raises(TypeError, match=r"no function measure\(effort, seed\)"):
        find_system("zz-sample")


def test_cards_are_those_of_the_systems_and_kept(folder, monkeypatch):
    folder("zz_sample", MODULE.format(slug="zz-sample") + "    def measure(effort, seed): ...")
    cards = all_cards()
    assert cards == {slug: system.card for slug, system in all_systems().items()}
    assert list(cards) == sorted(cards)
    monkeypatch.setattr(registry, "all_systems", lambda: pytest.fail("imported again"))
    assert all_cards() == cards


def test_a_changed_module_is_read_again(folder, tmp_path):
    text = MODULE.format(slug="zz-sample") + "    def measure(effort, seed): ..."
    folder("zz_sample", text)
    assert all_cards()["zz-sample"].title == "T"
    folder("zz_sample", text.replace('title="T"', 'title="Another"'))
    sys.modules.pop(f"{systems.__name__}.zz_sample")
    assert all_cards()["zz-sample"].title == "Another"
    (tmp_path / "modules" / "zz_sample.py").unlink()
    assert "zz-sample" not in all_cards()


@pytest.mark.parametrize("content", ["", "[]", '{"sources": 1}', "\xff"])
def test_a_broken_cache_is_made_again(folder, tmp_path, content):
    cards = all_cards()
    (kept,) = (tmp_path / "cache" / "cards").iterdir()
    kept.write_text(content, encoding="latin-1")
    assert all_cards() == cards
    assert kept.stat().st_size > 1000


def test_without_a_place_for_a_cache_the_modules_answer(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "file"))
    assert "tensorbleu" in all_cards()
