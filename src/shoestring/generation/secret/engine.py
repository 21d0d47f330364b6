"""What protocols are written in: the few operations in which two and three parties differ.

Values that are shared as summands are `Secret`s modulo 2^64; "bits" are `Secret`s whose parts are added
without carry (xor). All parties run the same calls in the same order on their own shares.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from shoestring.generation.secret.channel import Channel
from shoestring.generation.secret.shares import Secret
from shoestring.numbers.ring import Ring, RingFormat


class FixedOperand(ABC):
    """A right factor of many products, prepared once; `reshape`, `rows` and `T` give views of it."""

    shape: tuple[int, ...]

    @property
    @abstractmethod
    def T(self) -> "FixedOperand":
        """The last two axes exchanged."""

    @abstractmethod
    def reshape(self, *shape: int) -> "FixedOperand":
        """Another shape of the same entries."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> "FixedOperand":
        """Some of the axis before the last."""


class Engine(ABC):
    """One party of a computation. `components`: summands that it holds of every secret."""

    parties: int
    components: int

    def __init__(self, channel: Channel, form: RingFormat) -> None:
        self.channel, self.rank, self.form = channel, channel.rank, form

    @property
    @abstractmethod
    def public_parts(self) -> Sequence[int]:
        """Which of this party's summands a public value is added to."""

    def add_public(self, x: Secret, value: Ring | int) -> Secret:
        """x plus a public ring element."""
        parts = x.parts.copy()
        for part in self.public_parts:
            parts[part] += np.uint64(value % (1 << 64)) if isinstance(value, int) else value
        return Secret(parts)

    def flip(self, bits: Secret) -> Secret:
        """All bits inverted."""
        parts = bits.parts.copy()
        for part in self.public_parts:
            parts[part] = ~parts[part]
        return Secret(parts)

    def constant(self, value: Ring) -> Secret:
        """A public value in the form of a secret."""
        zero = Secret(np.zeros((self.components, *np.shape(value)), dtype=np.uint64))
        return self.add_public(zero, np.asarray(value, dtype=np.uint64))

    @abstractmethod
    def open(self, x: Secret) -> Ring:
        """The value, to all parties."""

    @abstractmethod
    def open_bits(self, bits: Secret) -> Ring:
        """The bits, to all parties."""

    @abstractmethod
    def multiply(self, x: Secret, y: Secret) -> Secret:
        """x · y, entry by entry, of equal shapes; fraction bits add up."""

    @abstractmethod
    def square(self, x: Secret) -> Secret:
        """x²; fraction bits double."""

    @abstractmethod
    def matmul(self, x: Secret, y: Secret | FixedOperand) -> Secret:
        """x (…, m, k) @ y (…, k, n); fraction bits add up."""

    @abstractmethod
    def truncate(self, x: Secret, bits: int) -> Secret:
        """x / 2^bits within 1; wrong by 2^(64−bits) with probability |x| · 2^(1−64)."""

    @abstractmethod
    def both(self, x: Secret, y: Secret) -> Secret:
        """x & y of bits of equal shapes."""

    @abstractmethod
    def summands_as_bits(self, x: Secret) -> tuple[Secret, Secret]:
        """Two secrets of bits u, v with u + v = x modulo 2^64."""

    @abstractmethod
    def bit_to_number(self, bits: Secret) -> Secret:
        """The lowest bit as the integer 0 or 1."""

    @abstractmethod
    def shuffle(self, rows: Secret) -> Secret:
        """rows (batch, n, w): the n rows of each sample in a random order that no party knows."""

    @abstractmethod
    def fix(self, y: Secret) -> FixedOperand:
        """Prepare a right factor of many products."""

    @abstractmethod
    def extend(self, fixed: FixedOperand, more: Secret) -> FixedOperand:
        """A prepared factor (not a view) with more entries along the axis before the last."""
