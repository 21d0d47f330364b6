"""Three parties, replicated: x = x0 + x1 + x2, and party i holds x_i and x_(i+1).

Products are local but for one message of the result's size; the inner dimension of a matrix product is free.

Source: Araki et al. 2016, "High-Throughput Semi-Honest Secure Three-Party Computation with an Honest
Majority" (products); Mohassel and Rindal 2018, "ABY3", sections 5.1 to 5.3 (truncation, bits).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shoestring.generation.secret.channel import Channel
from shoestring.generation.secret.engine import Engine, FixedOperand
from shoestring.generation.secret.prg import Prg
from shoestring.generation.secret.shares import Secret, concatenate
from shoestring.numbers.ring import Ring, RingFormat, ring_matmul, truncate_first, truncate_second


@dataclass(frozen=True, eq=False)
class PlainOperand(FixedOperand):
    """Nothing has to be prepared: the secret itself."""

    secret: Secret

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Of the operand."""
        return self.secret.shape

    @property
    def T(self) -> "PlainOperand":
        return PlainOperand(self.secret.swap(-1, -2))

    def reshape(self, *shape: int) -> "PlainOperand":
        return PlainOperand(self.secret.reshape(*shape))

    def rows(self, start: int, stop: int) -> "PlainOperand":
        return PlainOperand(self.secret[..., start:stop, :])


class ThreeParty(Engine):
    """Party 0, 1 or 2. keys: of the draws in common with the one before and with the one after it.

    Party i and the one before it know key i: with it they draw the summand i, which both hold.
    """

    parties, components = 3, 2

    def __init__(self, channel: Channel, form: RingFormat, keys: tuple[bytes, bytes]) -> None:
        super().__init__(channel, form)
        if len(channel.sockets) != 2:
            raise ValueError(f"{len(channel.sockets) + 1} parties: replicated shares are for exactly 3.")
        self.prgs = Prg(keys[0]), Prg(keys[1])
        self.before, self.after = (self.rank - 1) % 3, (self.rank + 1) % 3

    @property
    def public_parts(self) -> Sequence[int]:
        return {0: (0,), 1: (), 2: (1,)}[self.rank]

    def open(self, x: Secret) -> Ring:
        return x.parts[0] + x.parts[1] + self._turn(x.parts[0], self.after, self.before)

    def open_bits(self, bits: Secret) -> Ring:
        return bits.parts[0] ^ bits.parts[1] ^ self._turn(bits.parts[0], self.after, self.before)

    def multiply(self, x: Secret, y: Secret) -> Secret:
        return self._product(x, y, np.multiply)

    def square(self, x: Secret) -> Secret:
        return self._product(x, x, np.multiply)

    def matmul(self, x: Secret, y: Secret | FixedOperand) -> Secret:
        right = y.secret if isinstance(y, PlainOperand) else y
        assert isinstance(right, Secret)
        return self._product(x, right, ring_matmul)

    def truncate(self, x: Secret, bits: int) -> Secret:
        if self.rank == 0:
            return self._from_first(truncate_first(x.parts[0] + x.parts[1], bits), x.shape)
        last = truncate_second(x.parts[1 if self.rank == 1 else 0], bits)
        return self._from_first(None, x.shape, last)

    def both(self, x: Secret, y: Secret) -> Secret:
        (x0, x1), (y0, y1) = x.parts, y.parts
        z = (x0 & y0) ^ (x0 & y1) ^ (x1 & y0) ^ self._draw(0, x.shape) ^ self._draw(1, x.shape)
        return Secret(np.stack([z, self._turn(z, self.before, self.after)]))

    def summands_as_bits(self, x: Secret) -> tuple[Secret, Secret]:
        none = np.zeros(x.shape, dtype=np.uint64)
        if self.rank == 0:
            u = self._from_first(x.parts[0] + x.parts[1], x.shape, bits=True)
            return u, Secret(np.stack([none, none]))
        u = self._from_first(None, x.shape, none, bits=True)
        last = x.parts[1 if self.rank == 1 else 0]
        return u, Secret(np.stack([none, last] if self.rank == 1 else [last, none]))

    def bit_to_number(self, bits: Secret) -> Secret:
        one = np.uint64(1)
        none = np.zeros(bits.shape, dtype=np.uint64)
        if self.rank == 0:
            u = self._from_first((bits.parts[0] ^ bits.parts[1]) & one, bits.shape)
            v = Secret(np.stack([none, none]))
        else:
            u = self._from_first(None, bits.shape, none)
            last = bits.parts[1 if self.rank == 1 else 0] & one
            v = Secret(np.stack([none, last] if self.rank == 1 else [last, none]))
        return u + v - self.multiply(u, v).scaled(2)

    def shuffle(self, rows: Secret) -> Secret:
        for outside in (2, 0, 1):
            rows = self._shuffle_without(rows, outside)
        return rows

    def fix(self, y: Secret) -> PlainOperand:
        return PlainOperand(y)

    def extend(self, fixed: FixedOperand, more: Secret) -> PlainOperand:
        assert isinstance(fixed, PlainOperand)
        return PlainOperand(concatenate([fixed.secret, more], -2))

    def _product(self, x: Secret, y: Secret, product: Callable[[Ring, Ring], Ring]) -> Secret:
        (x0, x1), (y0, y1) = x.parts, y.parts
        z = product(x0, y0 + y1) + product(x1, y0)
        z = z + self._draw(0, z.shape) - self._draw(1, z.shape)
        return Secret(np.stack([z, self._turn(z, self.before, self.after)]))

    def _from_first(
        self, value: Ring | None, shape: tuple[int, ...], last: Ring | None = None, *, bits: bool = False
    ) -> Secret:
        """Share what party 0 knows: the summand 0 is drawn with party 2, 1 is sent to party 1, 2 is `last`,
        which parties 1 and 2 know."""
        if self.rank == 0:
            assert value is not None
            first = self._draw(0, shape)
            second = value ^ first if bits else value - first
            self._skip(1)
            self.channel.transfer({1: second.tobytes()}, ())
            return Secret(np.stack([first, second]))
        assert last is not None
        if self.rank == 1:
            self._skip(0)
            self._skip(1)
            payload = self.channel.transfer({}, (0,))[0]
            return Secret(np.stack([np.frombuffer(payload, dtype=np.uint64).reshape(shape), last]))
        self._skip(0)
        return Secret(np.stack([last, self._draw(1, shape)]))

    def _shuffle_without(self, rows: Secret, outside: int) -> Secret:
        """The two others reorder all summands as they have agreed, and share them anew with `outside`."""
        first, second = (outside + 1) % 3, (outside + 2) % 3
        if self.rank == outside:
            # Its new summands are those it draws: with the one before it and with the one after it.
            return Secret(np.stack([self._draw(0, rows.shape), self._draw(1, rows.shape)]))
        if self.rank == first:
            # Holds the summands of `first` and `second`; its key 1 is the one it shares with `second`.
            order = self.prgs[1].orders(rows.shape[:-1])
            drawn = self._draw(0, rows.shape)
            rest = _ordered(rows.parts[0] + rows.parts[1], order) - drawn
            whole = rest + self._turn(rest, second, second)
            return Secret(np.stack([drawn, whole]))
        order = self.prgs[0].orders(rows.shape[:-1])
        drawn = self._draw(1, rows.shape)
        rest = _ordered(rows.parts[1], order) - drawn
        whole = rest + self._turn(rest, first, first)
        return Secret(np.stack([whole, drawn]))

    def _draw(self, which: int, shape: tuple[int, ...]) -> Ring:
        return self.prgs[which].words(shape)

    def _skip(self, which: int) -> None:
        self.prgs[which].skip()

    def _turn(self, mine: Ring, to: int, source: int) -> Ring:
        payload = self.channel.transfer({to: np.ascontiguousarray(mine).tobytes()}, (source,))[source]
        return np.frombuffer(payload, dtype=np.uint64).reshape(mine.shape)


def _ordered(rows: Ring, order: np.ndarray) -> Ring:
    return np.take_along_axis(rows, order[..., None], axis=-2)
