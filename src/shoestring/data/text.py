"""Text for calibration and for proof, kept apart: what a model was fitted on never judges it.

The default is the English prose of the standard library's `pydoc_data.topics`, which every Python has.
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.errors import MissingData


@runtime_checkable
class Encoder(Protocol):
    """What is asked of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class TextHalves:
    """Two disjoint parts of one text. `name` says which text it is."""

    calibration: str
    held_out: str
    name: str


def default_halves() -> TextHalves:
    """The standard library's help topics: the calibration half and the held-out half.

    Topics alternate between the halves in alphabetical order, so that both see every kind of subject. No
    paragraph stands in both.
    Raises: MissingData if this Python was built without `pydoc_data`.
    """
    topics = _topics()
    halves = ["\n\n".join(topics[offset::2]) for offset in (0, 1)]
    return TextHalves(halves[0], halves[1], "pydoc_data.topics")


def file_halves(path: str | os.PathLike[str]) -> TextHalves:
    """A user's text, cut at the paragraph nearest to its middle: the first part is for calibration.

    Raises: as `read_text`; ValueError if there is no second part.
    """
    return cut_in_halves(read_text(path), Path(path).name)


def cut_in_halves(text: str, name: str) -> TextHalves:
    """A text cut at the paragraph nearest to its middle. Raises: ValueError if there is no second part."""
    cut = _cut_near(text, len(text) // 2)
    calibration, held_out = text[:cut], text[cut:]
    if not calibration.strip() or not held_out.strip():
        raise ValueError(f"'{name}' cannot be cut in two parts; give a text of several paragraphs.")
    return TextHalves(calibration, held_out, name)


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file in UTF-8.

    Raises: FileNotFoundError, or ValueError if it is a folder, cannot be read, is no text or is empty.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no text file '{path}'.") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"'{path}' is not UTF-8 text (byte {error.start}); give a plain text file."
        ) from None
    except OSError as error:
        raise ValueError(f"'{path}' cannot be read: {error.strerror}.") from None
    if not text.strip():
        raise ValueError(f"'{path}' is empty; give a text of a few pages.")
    if "\0" in text:
        raise ValueError(f"'{path}' holds NUL characters, so it is no text; give a plain text file.")
    return text


def token_windows(
    text: str,
    tokenizer: Encoder,
    window: int,
    *,
    stride: int | None = None,
    limit: int | None = None,
    name: str = "the text",
) -> Int[Tensor, "windows window"]:
    """The text's tokens cut into windows of `window`, the rest left out; at most `limit` windows.

    stride: from the start of a window to that of the next; by default they do not overlap.
    Raises: ValueError if the text is too short for one window, saying how many tokens it has, or for a stride
    that is not positive.
    """
    if window < 2:
        raise ValueError(f"window={window} is too short to predict anything; use 2 or more.")
    ids = torch.tensor(tokenizer.encode(text), dtype=torch.int64)
    if len(ids) < window:
        raise ValueError(f"{name} has {len(ids)} tokens, too few for one window of {window}; give more text.")
    stride = window if stride is None else stride
    if stride < 1:
        raise ValueError(f"stride={stride} leads nowhere; use 1 or more.")
    return ids.unfold(0, window, stride)[:limit].contiguous()


@functools.cache
def _topics() -> tuple[str, ...]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise MissingData(
            "this Python has no pydoc_data.topics, the default text; give a text of your own (--text FILE)."
        ) from None
    seen: set[str] = set()
    return tuple(_new_paragraphs(topics[name], seen) for name in sorted(topics))


def _new_paragraphs(topic: str, seen: set[str]) -> str:
    """A topic without the paragraphs that came in another one before: topics quote each other at length."""
    kept = []
    for paragraph in topic.strip().split("\n\n"):
        words = " ".join(paragraph.split())
        if words not in seen:
            seen.add(words)
            kept.append(paragraph)
    return "\n\n".join(kept)


def _cut_near(text: str, middle: int) -> int:
    """The paragraph break nearest to `middle`, else the line break, else the word break."""
    for mark in ("\n\n", "\n", " "):
        before, after = text.rfind(mark, 0, middle), text.find(mark, middle)
        cuts = [cut + len(mark) for cut in (before, after) if cut >= 0]
        if cuts:
            return min(cuts, key=lambda cut: abs(cut - middle))
    return len(text)
