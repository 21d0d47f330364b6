"""Which text an experiment runs on, and that a stand-in is said."""

from shoestring.data.corpora import load_corpus
from shoestring.errors import MissingData
from shoestring.notices import record_fallbacks
from shoestring.systems import language_task
from shoestring.systems.language_task import corpus_halves, corpus_text


def test_a_corpus_that_cannot_be_had_is_said(monkeypatch):
    def missing(name: str) -> str:
        raise MissingData(f"{name} is nowhere")

    monkeypatch.delenv("SHOESTRING_TEXT", raising=False)
    monkeypatch.setattr(language_task, "load_corpus", missing)
    with record_fallbacks() as said:
        assert corpus_halves("shakespeare").name == "pydoc_data.topics"
    assert said == ["shakespeare: the default text stands in for it: shakespeare is nowhere"]
    monkeypatch.setattr(language_task, "load_corpus", lambda name: "one\n\ntwo three")
    halves = corpus_halves("shakespeare")
    assert (halves.calibration, halves.held_out, halves.name) == ("one\n\n", "two three", "shakespeare")


def test_the_whole_of_a_corpus_or_of_what_stands_in_for_it(monkeypatch):
    def missing(name: str) -> str:
        if name == "pydoc":
            return load_corpus(name)
        raise MissingData(f"{name} is nowhere")

    monkeypatch.setattr(language_task, "load_corpus", missing)
    with record_fallbacks() as said:
        assert corpus_text("shakespeare") == (load_corpus("pydoc"), "pydoc")
    assert said == ["shakespeare: the default text stands in for it: shakespeare is nowhere"]
    monkeypatch.setattr(language_task, "load_corpus", lambda name: "to be")
    assert corpus_text("shakespeare") == ("to be", "shakespeare")
