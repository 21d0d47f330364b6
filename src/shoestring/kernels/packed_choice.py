"""The variants of the kernel of `packed_linear` that a processor may prefer."""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from shoestring.kernels.tile.c.emitter import Prefetch
from shoestring.kernels.tile.target import Target

_AHEAD = Prefetch(2, 3, 6)
_SUMS = {"avx512": 16, "avx2": 8}


@dataclass(frozen=True)
class Choice:
    """One variant: `columns` of tiles in a block, each a stream of its own, and how far ahead the codes are
    asked for."""

    columns: int = 4
    prefetch: Prefetch = _AHEAD

    def numbers(self) -> dict[str, int]:
        """What a table keeps."""
        ahead = self.prefetch
        return {"columns": self.columns} | dataclasses.asdict(ahead)

    @classmethod
    def of(cls, numbers: Mapping[str, int] | None) -> "Choice":
        """The variant that a table names; the default without an entry, or for one that makes no sense."""
        try:
            if numbers is None or numbers["columns"] < 1:
                return cls()
            ahead = Prefetch(numbers["turns"], numbers["locality"], numbers.get("far", 0))
            return cls(numbers["columns"], ahead)
        except (KeyError, ValueError):
            return cls()


DEFAULT_CHOICE = Choice()


def most_sums(target: Target) -> int:
    """Vectors of sums that fit the registers beside a weight and a table."""
    return _SUMS.get(target.name, 8)


def choices_for(sums: int, target: Target) -> list[Choice]:
    """Variants worth measuring where an output takes so many sums: streams, distances, caches."""
    several = [columns for columns in (2, 4) if columns * sums <= most_sums(target)]
    streams = itertools.product(several, (Prefetch(4, 3), Prefetch(8, 3), _AHEAD))
    return [Choice(1, Prefetch(16, 2)), *(Choice(*stream) for stream in streams)]
