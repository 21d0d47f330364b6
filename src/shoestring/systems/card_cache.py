"""Keeps what the cards say, so that a list of them need not import their experiments."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import shoestring
from shoestring.files import cache_folder, write_text
from shoestring.systems.card import Card, Claim

Folders = Iterable[str | os.PathLike[str]]


def load(folders: Folders) -> dict[str, Card] | None:
    """The cards kept for these folders of modules; None if there are none, or a source file has changed."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # made again, whatever it holds
        document = json.loads(_place(folders).read_text(encoding="utf-8"))
        if document["sources"] == _sources(folders):
            return {slug: _card(fields) for slug, fields in document["cards"].items()}
    return None


def save(folders: Folders, cards: Mapping[str, Card]) -> None:
    """Keep the cards; where the cache cannot be written they are read from their modules each time."""
    document = {"sources": _sources(folders), "cards": {slug: asdict(card) for slug, card in cards.items()}}
    with contextlib.suppress(OSError):
        write_text(_place(folders), json.dumps(document))


def _place(folders: Folders) -> Path:
    """A file for each installation: two of them side by side do not take turns in one."""
    name = hashlib.sha256("\n".join(str(folder) for folder in folders).encode()).hexdigest()[:16]
    return cache_folder("cards") / f"{name}.json"


def _sources(folders: Folders) -> str:
    """Names, sizes and times of all modules: a card may take its figures from any of them."""
    found = []
    for folder in [*shoestring.__path__, *folders]:
        for path in sorted(Path(folder).rglob("*.py")):
            state = path.stat()
            found.append(f"{path} {state.st_size} {state.st_mtime_ns}")
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def _card(fields: dict[str, Any]) -> Card:
    for name in ("saves", "parts"):
        fields[name] = tuple(fields[name])
    return Card(**fields | {"claims": tuple(Claim(**claim) for claim in fields["claims"])})
