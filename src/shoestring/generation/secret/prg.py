"""Pseudo-random words that two holders of a key draw alike.

The stream is SHAKE-128 of key and counter, so that a party's view tells nothing to who lacks the key.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from shoestring.numbers.ring import Ring


class Prg:
    """Draws from a key, one counter value each: equal keys and equal orders of calls give equal words."""

    def __init__(self, key: bytes) -> None:
        self.key, self.counter = key, 0

    def words(self, shape: tuple[int, ...]) -> Ring:
        """The next ring elements."""
        self.counter += 1
        return words_at(self.key, self.counter - 1, shape)

    def skip(self, draws: int = 1) -> None:
        """Leave out draws that only the other side makes."""
        self.counter += draws

    def orders(self, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Random permutations of the last axis, one for each row."""
        self.counter += 1
        return orders_at(self.key, self.counter - 1, shape)


def words_at(key: bytes, counter: int, shape: tuple[int, ...]) -> Ring:
    """What a `Prg` with this key draws at this counter."""
    count = int(np.prod(shape, dtype=np.int64))
    stream = hashlib.shake_128(key + counter.to_bytes(8, "little")).digest(8 * count)
    return np.frombuffer(stream, dtype=np.uint64).reshape(shape)


def orders_at(key: bytes, counter: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """What `Prg.orders` draws at this counter."""
    return np.argsort(words_at(key, counter, shape), axis=-1, kind="stable")
