"""Small texts that language experiments use: looked for on this machine first, fetched only when nowhere."""

import hashlib
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shoestring.data.text import default_halves
from shoestring.errors import MissingData
from shoestring.files import cache_folder, replacing_file

_CONNECT_SECONDS = 5


@dataclass(frozen=True)
class Corpus:
    """A text file: its name, where its makers keep it, and its SHA-256."""

    file: str
    address: str
    sha256: str
    about: str


CORPORA = {
    "shakespeare": Corpus(
        "tinyshakespeare.txt",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "40,000 lines of plays by Shakespeare, 1.1 MB (public domain)",
    ),
    "wikitext2-valid": Corpus(
        "wikitext2-valid.txt",
        "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/valid.txt",
        "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        "WikiText-2's validation part as words, 1.1 MB (CC BY-SA; Merity et al. 2016)",
    ),
}
PYDOC = "pydoc"
"""The help topics of the standard library, which every Python has: 0.6 MB."""


def load_corpus(name: str) -> str:
    """The text called `name`: "shakespeare", "wikitext2-valid" or "pydoc".

    Looked for in `$SHOESTRING_DATA/text` and the user cache; else fetched into the cache. Checked against its
    SHA-256. Raises: ValueError for another name or an altered file; MissingData saying how to provide it.
    """
    if name == PYDOC:
        halves = default_halves()
        return halves.calibration + "\n\n" + halves.held_out
    if name not in CORPORA:
        raise ValueError(f"text {name!r} is not known; use {', '.join((*CORPORA, PYDOC))}")
    corpus = CORPORA[name]
    for place in _places(corpus):
        if place.is_file():
            return _checked(place.read_bytes(), corpus, str(place))
    return _fetch(corpus)


def _places(corpus: Corpus) -> Iterator[Path]:
    if base := os.environ.get("SHOESTRING_DATA"):
        yield Path(base, "text", corpus.file)
    yield cache_folder("data", "text") / corpus.file


def _checked(content: bytes, corpus: Corpus, name: str) -> str:
    if hashlib.sha256(content).hexdigest() != corpus.sha256:
        raise ValueError(f"{name}: its SHA-256 is not that of {corpus.file}; provide it anew")
    return content.decode("utf-8")


def _fetch(corpus: Corpus) -> str:
    try:
        with urllib.request.urlopen(corpus.address, timeout=_CONNECT_SECONDS) as answer:
            content = answer.read()
    except OSError as error:
        raise MissingData(
            f"{corpus.file} ({corpus.about}) is not on this machine and could not be fetched ({error}): save "
            f"{corpus.address} as {corpus.file} in a folder 'text' and set SHOESTRING_DATA to the folder "
            "above it"
        ) from error
    text = _checked(content, corpus, corpus.address)
    with replacing_file(cache_folder("data", "text") / corpus.file) as temporary:
        temporary.write_bytes(content)
    return text
