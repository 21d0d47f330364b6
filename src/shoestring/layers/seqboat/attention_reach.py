"""How far a token attends: a window, its own chunk, or everything. What attention costs follows from it.

Positions are those of the sequence that attention is given; where tokens were left out of it, a window
reaches further back in the original one.
"""

from dataclasses import dataclass

from torch import Tensor

from shoestring.layers.local_attention import LocalPattern

PAIRS_OF_A_KEY = 12
"""A key and its value, set beside a block and summed in the backward pass, take as long as so many pairs:
measured, 70 to 90 ns against 7, with d_qk 64 and d_hidden 256, and alike with half of both."""


@dataclass(frozen=True)
class Window:
    """Tokens i and j with |i − j| ≤ size meet, exactly. Raises: ValueError for a size below 1."""

    size: int = 128

    def __post_init__(self) -> None:
        _check(self.size, "window")

    def pattern(self, n: int, *, causal: bool) -> LocalPattern:
        """As blocks of a sequence of n tokens, cut so that pairs and the keys set beside blocks cost least.

        One block may be the cheapest although the window ends inside of it: then the pattern shows more than
        `sees` allows.
        """
        patterns = [_whole(n, causal), *(self._blocks(block, causal) for block in self._block_sizes())]
        return min(patterns, key=lambda pattern: _cost(pattern, n))

    def _block_sizes(self) -> tuple[int, ...]:
        # Half a window computes fewer pairs that the mask drops; smaller blocks lose more in the products.
        return (self.size, -(-self.size // 2)) if self.size >= 32 else (self.size,)

    def _blocks(self, block: int, causal: bool) -> LocalPattern:
        beside = -(-self.size // block)
        return LocalPattern(block, beside, 0 if causal else beside, causal=causal, reach=self.size)

    def sees(self, apart: Tensor) -> Tensor:
        """Whether tokens so far apart may meet."""
        return apart.abs() <= self.size

    def keys(self, n: int, *, causal: bool) -> int:
        """What the squared rectifier divides by: the window, on both sides where both are seen."""
        return self.size if causal else 2 * self.size


@dataclass(frozen=True)
class Chunks:
    """The sequence is cut into chunks of `size`, and tokens of one chunk meet, as in Mega-chunk.

    Raises: ValueError for a size below 1.
    """

    size: int = 128

    def __post_init__(self) -> None:
        _check(self.size, "chunk")

    def pattern(self, n: int, *, causal: bool) -> LocalPattern:
        """As blocks of a sequence of n tokens."""
        return LocalPattern(min(self.size, n), before=0, causal=causal)

    def keys(self, n: int, *, causal: bool) -> int:
        """What the squared rectifier divides by."""
        return self.size


@dataclass(frozen=True)
class Everywhere:
    """All tokens meet, at quadratic cost."""

    def pattern(self, n: int, *, causal: bool) -> LocalPattern:
        """One block."""
        return _whole(n, causal)

    def keys(self, n: int, *, causal: bool) -> int:
        """What the squared rectifier divides by."""
        return n


Reach = Window | Chunks | Everywhere


def _whole(n: int, causal: bool) -> LocalPattern:
    return LocalPattern(max(n, 1), before=0, causal=causal)


def _cost(pattern: LocalPattern, n: int) -> int:
    """In pairs of a query and a key."""
    return -(-n // pattern.block) * pattern.span * (pattern.block + PAIRS_OF_A_KEY)


def _check(size: int, name: str) -> None:
    if size < 1:
        raise ValueError(f"{name}={size} must be 1 or more")
