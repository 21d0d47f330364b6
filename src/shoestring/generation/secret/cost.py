"""What protocols cost in closed form: bytes on the wire, summed over the parties, and dependent rounds.

The channel counts the same; tests hold the two together byte for byte. Rounds are summed: three parties may
need a few less, as a message that goes one way holds up its receiver only. Bytes of a dealer are not in it.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from shoestring.generation.secret.functions import EXP_SQUARES, newton_steps

AND_LAYERS, WORDS_OF_ADDER = 7, 12
"""Rounds of the prefix adder, and words that it multiplies bit by bit: one, five pairs, one."""
FOLDS = 6


@dataclass(frozen=True)
class Cost:
    """rounds in a row, and bytes."""

    rounds: int = 0
    nbytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.rounds + other.rounds, self.nbytes + other.nbytes)

    def seconds(
        self, round_trip_seconds: float, bits_per_second: float, compute_seconds: float = 0.0
    ) -> float:
        """rounds · RTT + bytes / bandwidth + compute."""
        return self.rounds * round_trip_seconds + 8 * self.nbytes / bits_per_second + compute_seconds


@dataclass(frozen=True)
class CostModel(ABC):
    """Costs of one kind of shares; n, rows, … count entries."""

    @abstractmethod
    def open(self, n: int) -> Cost: ...

    @abstractmethod
    def multiply(self, n: int) -> Cost: ...

    @abstractmethod
    def square(self, n: int) -> Cost: ...

    @abstractmethod
    def matmul(self, batch: int, rows: int, inner: int, columns: int, *, fixed: bool = False) -> Cost: ...

    @abstractmethod
    def truncate(self, n: int) -> Cost: ...

    @abstractmethod
    def both(self, n: int) -> Cost: ...

    @abstractmethod
    def as_bits(self, n: int) -> Cost: ...

    @abstractmethod
    def bit_to_number(self, n: int) -> Cost: ...

    @abstractmethod
    def shuffle(self, n: int) -> Cost: ...

    @abstractmethod
    def fix(self, n: int) -> Cost: ...

    def negative_bit(self, n: int) -> Cost:
        """Sign bit of n values."""
        if n == 0:
            return Cost()
        return self.as_bits(n) + Cost(AND_LAYERS, self.both(WORDS_OF_ADDER * n).nbytes)

    def less(self, n: int) -> Cost:
        """n comparisons."""
        return self.negative_bit(n) + self.bit_to_number(n) if n else Cost()

    def equal(self, n: int) -> Cost:
        """n equality tests."""
        if n == 0:
            return Cost()
        return self.as_bits(n) + Cost(FOLDS, FOLDS * self.both(n).nbytes) + self.bit_to_number(n)

    def maximum(self, batch: int, n: int) -> Cost:
        """Largest of n, `batch` times at once."""
        total = Cost()
        while n > 1:
            half = n // 2
            total = total + self.less(batch * half) + self.multiply(batch * half)
            n -= half
        return total

    def exponential(self, n: int) -> Cost:
        """n exponentials."""
        total = self.truncate(n)
        for _ in range(EXP_SQUARES + 1):
            total = total + self.square(n) + self.truncate(n)
        return total

    def reciprocal(self, n: int, bound_bits: int) -> Cost:
        """n reciprocals of numbers up to 2^bound_bits."""
        total = Cost()
        for _ in range(newton_steps(bound_bits)):
            total = total + self.multiply(n) + self.truncate(n) + self.multiply(n) + self.truncate(n)
        return total

    def softmax_parts(self, batch: int, n: int) -> Cost:
        """Weights and reciprocals of sums, not yet multiplied."""
        bound_bits = math.ceil(math.log2(n))
        return self.maximum(batch, n) + self.exponential(batch * n) + self.reciprocal(batch, bound_bits)

    def ranked_rows(self, batch: int, n: int, width: int, k: int) -> Cost:
        """k of n rows of `width`, by one-hot ranks."""
        pairs = self.less(batch * n * (n - 1) // 2)
        return pairs + self.equal(batch * k * n) + self.matmul(batch, k, n, width)

    def shuffled_rows(self, batch: int, n: int, width: int, k: int) -> Cost:
        """k of n rows of `width`, by an opened order of shuffled items."""
        if n < 2:
            return Cost()
        pairs = batch * n * (n - 1) // 2
        return self.shuffle(batch * n * (width + 1)) + self.negative_bit(pairs) + self.open(pairs)


class TwoPartyCost(CostModel):
    """Two summands and a dealer."""

    def open(self, n: int) -> Cost:
        return Cost(1, 16 * n)

    def multiply(self, n: int) -> Cost:
        return Cost(1, 32 * n)

    def square(self, n: int) -> Cost:
        return Cost(1, 16 * n)

    def matmul(self, batch: int, rows: int, inner: int, columns: int, *, fixed: bool = False) -> Cost:
        return Cost(1, 16 * batch * (rows * inner + (0 if fixed else inner * columns)))

    def truncate(self, n: int) -> Cost:
        return Cost()

    def both(self, n: int) -> Cost:
        return Cost(1, 32 * n)

    def as_bits(self, n: int) -> Cost:
        return Cost()

    def bit_to_number(self, n: int) -> Cost:
        return Cost(1, 16 * n)

    def shuffle(self, n: int) -> Cost:
        return Cost(2, 16 * n)

    def fix(self, n: int) -> Cost:
        return Cost(1, 16 * n)


class ThreePartyCost(CostModel):
    """Replicated shares of three."""

    def open(self, n: int) -> Cost:
        return Cost(1, 24 * n)

    def multiply(self, n: int) -> Cost:
        return Cost(1, 24 * n)

    def square(self, n: int) -> Cost:
        return Cost(1, 24 * n)

    def matmul(self, batch: int, rows: int, inner: int, columns: int, *, fixed: bool = False) -> Cost:
        return Cost(1, 24 * batch * rows * columns)

    def truncate(self, n: int) -> Cost:
        return Cost(1, 8 * n)

    def both(self, n: int) -> Cost:
        return Cost(1, 24 * n)

    def as_bits(self, n: int) -> Cost:
        return Cost(1, 8 * n)

    def bit_to_number(self, n: int) -> Cost:
        return Cost(2, 32 * n)

    def shuffle(self, n: int) -> Cost:
        return Cost(3, 48 * n)

    def fix(self, n: int) -> Cost:
        return Cost()


def cost_model(parties: int) -> CostModel:
    """By the number of parties. Raises: ValueError for another than 2 or 3."""
    if parties not in (2, 3):
        raise ValueError(f"parties={parties}: there are protocols for 2 and for 3.")
    return TwoPartyCost() if parties == 2 else ThreePartyCost()
