"""Turn tokens into text while they arrive: whole characters only, and nothing past a stop string."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are not (yet) a character."""


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of the transformers library have it."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: list[int], skip_special_tokens: bool = ...) -> str: ...


class TextStream:
    """Pieces of text whose concatenation is the decoded text, cut before the first of the `stop` strings.

    A character of several byte tokens comes with its last byte. What could be the beginning of a stop string
    is held back until it is known not to be one. Raises: ValueError for an empty stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        if any(not s for s in stop):
            raise ValueError("an empty stop string would stop at once; leave it out.")
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.stopped: str | None = None
        self._ids: list[int] = []
        # Decoding starts one piece early: some decoders treat the first token of a text differently.
        self._context, self._read = 0, 0
        self._context_text = ""
        self._held = ""

    def push(self, token: int) -> str:
        """The text that `token` completes, perhaps empty. After a stop string `stopped` names it."""
        self._ids.append(token)
        text = self.tokenizer.decode(self._ids[self._context :], skip_special_tokens=True)
        if text.endswith(REPLACEMENT):
            return ""
        return self._release(self._advance(text))

    def finish(self) -> str:
        """The rest: bytes that never became a character, and what looked like the start of a stop string."""
        if self.stopped is not None:
            return ""
        text = self.tokenizer.decode(self._ids[self._context :], skip_special_tokens=True)
        piece = self._release(self._advance(text))
        if self.stopped is None:
            piece, self._held = piece + self._held, ""
        return piece

    def _advance(self, text: str) -> str:
        """What `text`, the decoded context and pending tokens, adds to the text so far."""
        piece = text[len(self._context_text) :]
        self._context, self._read = self._read, len(self._ids)
        self._context_text = self.tokenizer.decode(
            self._ids[self._context : self._read], skip_special_tokens=True
        )
        return piece

    def _release(self, piece: str) -> str:
        if self.stopped is not None:
            return ""
        text = self._held + piece
        found = [(text.find(s), s) for s in self.stop if s in text]
        if found:
            cut, self.stopped = min(found)
            self._held = ""
            return text[:cut]
        keep = max((_overlap(text, s) for s in self.stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
