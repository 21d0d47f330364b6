import hashlib
import io

import pytest

from shoestring.data import corpora
from shoestring.data.corpora import Corpus, load_corpus
from shoestring.errors import MissingData

TEXT = "To be, or not to be: that is the question.\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """One small corpus, an empty cache, no data folder, and no network."""
    sha256 = hashlib.sha256(TEXT.encode()).hexdigest()
    corpus = Corpus("play.txt", "https://example.org/play.txt", sha256, "a play")
    monkeypatch.setattr(corpora, "CORPORA", {"play": corpus})
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SHOESTRING_DATA", raising=False)

    def refuse(address, timeout):
        raise OSError("no network")

    monkeypatch.setattr(corpora.urllib.request, "urlopen", refuse)
    return tmp_path


def test_a_file_of_the_user_is_read(folder, monkeypatch):
    (folder / "text").mkdir()
    (folder / "text" / "play.txt").write_text(TEXT)
    monkeypatch.setenv("SHOESTRING_DATA", str(folder))
    assert load_corpus("play") == TEXT
    (folder / "text" / "play.txt").write_text(TEXT + "!")
    with pytest.raises(ValueError, match=r"play.txt: its SHA-256 is not"):
        load_corpus("play")


def test_it_is_fetched_once(folder, monkeypatch):
    asked = []

    def answer(address, timeout):
        asked.append(address)
        return io.BytesIO(TEXT.encode())

    monkeypatch.setattr(corpora.urllib.request, "urlopen", answer)
    assert load_corpus("play") == load_corpus("play") == TEXT
    assert asked == ["https://example.org/play.txt"]


def test_what_is_fetched_is_checked(folder, monkeypatch):
    monkeypatch.setattr(corpora.urllib.request, "urlopen", lambda address, timeout: io.BytesIO(b"other"))
    with pytest.raises(ValueError, match="SHA-256"):
        load_corpus("play")
    assert not list(folder.rglob("play.txt"))


def test_without_a_network_it_is_said_how_to_provide_it(folder):
    with pytest.raises(MissingData, match="save https://example.org/play.txt as play.txt in a folder 'text'"):
        load_corpus("play")


def test_the_help_topics_are_always_there(folder):
    assert len(load_corpus("pydoc")) > 300_000


def test_unknown_names_are_answered_with_the_known_ones(folder):
    with pytest.raises(ValueError, match="'novel' is not known; use play, pydoc"):
        load_corpus("novel")
