"""A text as a stream of token ids, and windows of it as a function of the step."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.data.seeded import check_seed, torch_generator
from shoestring.data.text import Encoder

Ids = Int[Tensor, " tokens"]


@dataclass(frozen=True)
class Characters:
    """The characters of a text as a vocabulary, in the order of their code points; ids count from 0.

    Raises: ValueError for a text without characters, and on encoding for a character that is not known.
    """

    characters: str

    @classmethod
    def of(cls, text: str) -> "Characters":
        """Those that occur in `text`."""
        if not text:
            raise ValueError("text is empty; a vocabulary needs at least one character")
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """The ids of the characters."""
        ids = {character: i for i, character in enumerate(self.characters)}
        if unknown := sorted(set(text) - ids.keys()):
            raise ValueError(f"character {unknown[0]!r} is not in this vocabulary of {len(self)}")
        return [ids[character] for character in text]

    def decode(self, ids: list[int]) -> str:
        """The characters of ids."""
        return "".join(self.characters[i] for i in ids)


class Bytes:
    """The bytes of a text in UTF-8 as ids 0 .. 255."""

    def __len__(self) -> int:
        return 256

    def encode(self, text: str) -> list[int]:
        """The bytes."""
        return list(text.encode("utf-8"))

    def decode(self, ids: list[int]) -> str:
        """The text of bytes; what is no UTF-8 becomes the replacement character."""
        return bytes(ids).decode("utf-8", errors="replace")


def token_ids(text: str, encoder: Encoder) -> Ids:
    """The whole text as one tensor; `encoder` is a vocabulary of this module or any tokenizer."""
    return torch.tensor(encoder.encode(text), dtype=torch.int64)


def split_ids(ids: Ids, held_out: float = 0.1) -> tuple[Int[Tensor, " first"], Int[Tensor, " last"]]:
    """The first part to train on and the last `held_out` of it to judge by.

    Raises: ValueError for a share outside 0 .. 1, or parts without a token.
    """
    cut = round(len(ids) * (1 - held_out))
    if not 0 < held_out < 1 or not 0 < cut < len(ids):
        raise ValueError(f"held_out={held_out} of {len(ids)} tokens leaves a part empty; use e.g. 0.1")
    return ids[:cut], ids[cut:]


@dataclass(frozen=True)
class TextBatches:
    """Called with a step, gives windows at random places of the stream: inputs and what follows each token.

    The places depend on the seed and the step alone.
    Raises: ValueError for a length below 1 or a stream that is not longer than it.
    """

    ids: Ids = field(repr=False)
    length: int
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed, self.batch_size)
        _check_length(self.ids, self.length)

    def __call__(self, step: int) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
        """Inputs and targets of a step."""
        generator = torch_generator(self.seed, step)
        starts = torch.randint(len(self.ids) - self.length, (self.batch_size, 1), generator=generator)
        windows = self.ids[starts + torch.arange(self.length + 1)]
        return windows[:, :-1], windows[:, 1:]


def every_window(
    ids: Ids, length: int, batch_size: int = 16
) -> Iterator[tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]]:
    """Inputs and targets that ask for each token after the first once, in order; what is over is left out.

    Raises: as `TextBatches`.
    """
    check_seed(0, batch_size)
    _check_length(ids, length)
    windows = ids.unfold(0, length + 1, length)
    for part in windows.split(batch_size):
        yield part[:, :-1], part[:, 1:]


def naive_window(ids: Ids, start: int, length: int) -> tuple[list[int], list[int]]:
    """The inputs and targets of one window, token by token."""
    inputs = [int(ids[start + i]) for i in range(length)]
    return inputs, [int(ids[start + i + 1]) for i in range(length)]


def _check_length(ids: Tensor, length: int) -> None:
    if length < 1:
        raise ValueError(f"length={length} must be 1 or more")
    if len(ids) <= length:
        raise ValueError(
            f"the text has {len(ids)} tokens, too few for windows of length={length} and the token after; "
            "give more text"
        )
