"""The dealer of two parties: knows the keys of their masks, never a share; tells party 1 what makes them fit.

Party 0 draws everything from its key. Party 1 draws its masks, and the dealer sends it the rest: 8 bytes for
each entry of a product. All of it can be made before any input is there ("offline").
"""

import json
from typing import Any

import numpy as np

from shoestring.generation.secret.channel import Channel
from shoestring.generation.secret.prg import orders_at, words_at
from shoestring.generation.secret.two_party import seen
from shoestring.numbers.ring import Ring, ring_matmul


class Dealer:
    """Answers requests of party 1. keys: of the masks of parties 0 and 1."""

    def __init__(self, keys: tuple[bytes, bytes]) -> None:
        self.keys = keys
        self._fixed: dict[int, Ring] = {}

    def serve(self, channel: Channel) -> None:
        """Until party 1 says that it is done. Raises: ConnectionError where it goes without a word."""
        while True:
            request = json.loads(channel.offline({}, (1,))[1])
            answer = self.answer(request)
            if request["kind"] == "done":
                return
            if answer is not None:
                channel.offline({1: answer.tobytes()}, ())

    def answer(self, request: dict[str, Any]) -> Ring | None:
        """Party 1's share of a product of masks; None where it needs none."""
        kind, x = request["kind"], tuple(request.get("x", ()))
        if kind == "done":
            # Masks of one program are never seen by the next.
            self._fixed.clear()
            return None
        # The counter after the draws of a request, of which the last is party 0's share of the result.
        last = request["counter"] - 1
        if kind in ("fix", "extend"):
            mask = self._mask(last, x)
            name = request["fixed"]
            old = self._fixed.get(name)
            self._fixed[name] = mask if kind == "fix" or old is None else np.concatenate([old, mask], -2)
            return None
        if kind.startswith("permute"):
            return self._permutation(int(kind.split()[1]), last, x)
        if kind == "bit":
            bit = (self._drawn(0, last - 1, x) ^ self._drawn(1, last - 1, x)) & np.uint64(1)
            return bit - self._drawn(0, last, x)
        if kind == "both":
            a, b = (self._drawn(0, at, x) ^ self._drawn(1, at, x) for at in (last - 2, last - 1))
            return (a & b) ^ self._drawn(0, last, x)
        product = self._product(kind, request, last, x)
        return product - self._drawn(0, last, product.shape)

    def _product(self, kind: str, request: dict[str, Any], last: int, x: tuple[int, ...]) -> Ring:
        if kind == "square":
            a = self._mask(last - 1, x)
            return a * a
        if kind == "fixed":
            return ring_matmul(self._mask(last - 1, x), seen(self._fixed[request["fixed"]], request["steps"]))
        a, b = self._mask(last - 2, x), self._mask(last - 1, tuple(request["y"]))
        return a * b if kind == "multiply" else ring_matmul(a, b)

    def _permutation(self, owner: int, last: int, x: tuple[int, ...]) -> Ring:
        """With a the mask, b the new share of who does not know the order: order(a) − what the owner adds."""
        order = orders_at(self.keys[owner], last - 2, x[:-1])
        a = self._drawn(1 - owner, last - 1, x)
        return np.take_along_axis(a, order[..., None], axis=-2) - self._drawn(0, last, x)

    def _drawn(self, party: int, counter: int, shape: tuple[int, ...]) -> Ring:
        return words_at(self.keys[party], counter, shape)

    def _mask(self, counter: int, shape: tuple[int, ...]) -> Ring:
        return self._drawn(0, counter, shape) + self._drawn(1, counter, shape)
