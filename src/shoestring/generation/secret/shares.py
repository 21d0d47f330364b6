"""What a party holds of a secret: one summand of two, or two of three; linear work on it is local."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from shoestring.generation.secret.prg import Prg
from shoestring.numbers.ring import Ring


@dataclass(frozen=True, eq=False)
class Secret:
    """parts: (1 or 2, *shape) summands modulo 2^64, or bits that are added without carry."""

    parts: Ring

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the secret."""
        return self.parts.shape[1:]

    def __add__(self, other: "Secret") -> "Secret":
        return Secret(self.parts + other.parts)

    def __sub__(self, other: "Secret") -> "Secret":
        return Secret(self.parts - other.parts)

    def __xor__(self, other: "Secret") -> "Secret":
        return Secret(self.parts ^ other.parts)

    def __neg__(self) -> "Secret":
        return Secret(np.zeros(1, dtype=np.uint64) - self.parts)

    def __getitem__(self, index: Any) -> "Secret":
        index = index if isinstance(index, tuple) else (index,)
        return Secret(self.parts[(slice(None), *index)])

    def scaled(self, factor: int | Ring) -> "Secret":
        """Times a public integer, or integers."""
        return Secret(self.parts * (np.uint64(factor % (1 << 64)) if isinstance(factor, int) else factor))

    def left(self, bits: int) -> "Secret":
        """All bits moved up."""
        return Secret(self.parts << np.uint64(bits))

    def right(self, bits: int) -> "Secret":
        """All bits moved down; only bits that are shared without carry may be."""
        return Secret(self.parts >> np.uint64(bits))

    def reshape(self, *shape: int) -> "Secret":
        """Another shape of the same values."""
        return Secret(self.parts.reshape(self.parts.shape[0], *shape))

    def swap(self, one: int, other: int) -> "Secret":
        """Two axes (counted from the end, negative) exchanged."""
        return Secret(self.parts.swapaxes(one, other))

    def sum(self, axis: int) -> "Secret":
        """Over an axis counted from the end, negative."""
        return Secret(self.parts.sum(axis=axis, dtype=np.uint64))


def concatenate(secrets: list[Secret], axis: int) -> Secret:
    """One after the other, along an axis counted from the end (negative)."""
    return Secret(np.concatenate([secret.parts for secret in secrets], axis=axis))


def share(values: Ring, parties: int, key: bytes) -> list[Secret]:
    """A secret for each of 2 or 3 parties, of which one alone tells nothing. key: secret randomness.

    With 3 parties, party i holds summands i and i + 1. Raises: ValueError for another number of parties.
    """
    if parties not in (2, 3):
        raise ValueError(f"parties={parties}: shares are made for 2 or 3.")
    prg = Prg(key)
    values = np.asarray(values, dtype=np.uint64)
    summands = [prg.words(values.shape) for _ in range(parties - 1)]
    last = values.copy()
    for summand in summands:
        last = last - summand
    summands.append(last)
    if parties == 2:
        return [Secret(summand[None]) for summand in summands]
    return [Secret(np.stack([summands[i], summands[(i + 1) % 3]])) for i in range(3)]


def combine(secrets: list[Secret]) -> Ring:
    """The values behind the shares of all parties."""
    total = np.zeros(secrets[0].shape, dtype=np.uint64)
    for secret in secrets:
        total = total + secret.parts[0]
    return total
