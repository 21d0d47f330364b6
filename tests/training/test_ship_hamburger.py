"""Package data from trained models."""

import pytest

from shoestring.systems.hamburger import held_out_prose
from shoestring.training import ship_hamburger
from shoestring.training.ship_hamburger import ship


def test_models_and_held_out_prose_go_along(monkeypatch, tmp_path):
    prose = "".join(chr(97 + i % 26) for i in range(600_000))
    monkeypatch.setattr(ship_hamburger, "prose_text", lambda: prose)
    for name in ("hamburger", "decoder"):
        (tmp_path / name / name).mkdir(parents=True)
        (tmp_path / name / name / "config.json").write_text(name)
    ship(tmp_path / "hamburger", tmp_path / "decoder", tmp_path / "to")
    assert (tmp_path / "to/hamburger/config.json").read_text() == "hamburger"
    assert (tmp_path / "to/hamburger-baseline/config.json").read_text() == "decoder"
    assert held_out_prose(tmp_path / "to/hamburger-prose.json") == prose[570_000:]


def test_a_model_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(ship_hamburger, "prose_text", lambda: "x" * 100)
    with pytest.raises(FileNotFoundError):
        ship(tmp_path / "a", tmp_path / "b", tmp_path / "to")
    assert not (tmp_path / "to").exists()
