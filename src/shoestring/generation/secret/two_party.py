"""Two parties and a dealer: x = x0 + x1. Products use random triples that the dealer hands out beforehand.

A factor of many products keeps one mask b for life: Y − b is opened once, and each later product opens X − a
only, the dealer providing a and a·b for the same b. The same masked value is never opened with a second mask,
nor a second value with the same mask.

Source: Beaver 1991, "Efficient Multiparty Protocols Using Circuit Randomization" (triples); Mohassel and
Zhang 2017, "SecureML", section 4.1 (matrix triples, truncation of shares).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from shoestring.generation.secret.channel import Channel
from shoestring.generation.secret.engine import Engine, FixedOperand
from shoestring.generation.secret.prg import Prg
from shoestring.generation.secret.shares import Secret
from shoestring.numbers.ring import Ring, RingFormat, ring_matmul, truncate_first, truncate_second

DEALER = 2
TOLD = ("fix", "extend", "done")
"""Requests that need no answer."""


@dataclass(frozen=True, eq=False)
class MaskedOperand(FixedOperand):
    """number: the dealer's name of the mask. opened: value − mask, known to both. own: this party's share."""

    number: int
    opened: Ring
    own: Ring
    steps: tuple[tuple[Any, ...], ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Of the operand, as this view shows it."""
        return self.opened.shape

    @property
    def T(self) -> "MaskedOperand":
        return self._seen(("swap",))

    def reshape(self, *shape: int) -> "MaskedOperand":
        return self._seen(("reshape", *shape))

    def rows(self, start: int, stop: int) -> "MaskedOperand":
        return self._seen(("rows", start, stop))

    def _seen(self, step: tuple[Any, ...]) -> "MaskedOperand":
        opened, own = seen(self.opened, [step]), seen(self.own, [step])
        return replace(self, opened=opened, own=own, steps=(*self.steps, step))


def seen(array: Ring, steps: Sequence[Sequence[Any]]) -> Ring:
    """An array through the steps of a view, which the dealer repeats on the mask."""
    for name, *numbers in steps:
        if name == "rows":
            array = array[..., slice(*numbers), :]
        else:
            array = array.swapaxes(-1, -2) if name == "swap" else array.reshape(numbers)
    return array


@runtime_checkable
class Deals(Protocol):
    """Who computes party 1's share of products of masks."""

    def answer(self, request: dict[str, Any]) -> Ring | None:
        """The share, or None for a request that only tells something."""
        ...


class RemoteDealer:
    """A dealer in a process of its own, asked over the channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def answer(self, request: dict[str, Any]) -> Ring | None:
        """Ask it. Only requests for a product are answered."""
        self.channel.offline({DEALER: json.dumps(request).encode()}, ())
        if request["kind"] in TOLD:
            return None
        return np.frombuffer(self.channel.offline({}, (DEALER,))[DEALER], dtype=np.uint64)


class TwoParty(Engine):
    """Party 0 or 1. key: its own, known to the dealer too. dealer: whom party 1 asks.

    Raises: ValueError where party 1 has no dealer to ask.
    """

    parties, components = 2, 1

    def __init__(self, channel: Channel, form: RingFormat, key: bytes, dealer: Deals | None) -> None:
        super().__init__(channel, form)
        if channel.rank == 1 and dealer is None:
            raise ValueError("two parties need a dealer for their products; give party 1 one.")
        self.prg, self.dealer, self._operands = Prg(key), dealer, 0

    @property
    def public_parts(self) -> Sequence[int]:
        return (0,) if self.rank == 0 else ()

    def open(self, x: Secret) -> Ring:
        return x.parts[0] + self._exchange(x.parts[0])

    def open_bits(self, bits: Secret) -> Ring:
        return bits.parts[0] ^ self._exchange(bits.parts[0])

    def multiply(self, x: Secret, y: Secret) -> Secret:
        a, b = self.prg.words(x.shape), self.prg.words(y.shape)
        c = self._correction("multiply", x.shape, x=x.shape, y=y.shape)
        opened = self._open_several(x.parts[0] - a, y.parts[0] - b)
        d, e = opened
        product = d * y.parts[0] + a * e + c
        return Secret(product[None])

    def square(self, x: Secret) -> Secret:
        a = self.prg.words(x.shape)
        c = self._correction("square", x.shape, x=x.shape)
        (d,) = self._open_several(x.parts[0] - a)
        return Secret((d * x.parts[0] + a * d + c)[None])

    def matmul(self, x: Secret, y: Secret | FixedOperand) -> Secret:
        shape = (*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1])
        a = self.prg.words(x.shape)
        if isinstance(y, MaskedOperand):
            c = self._correction("fixed", shape, x=x.shape, fixed=y.number, steps=y.steps)
            (d,) = self._open_several(x.parts[0] - a)
            return Secret((ring_matmul(d, y.own) + ring_matmul(a, y.opened) + c)[None])
        assert isinstance(y, Secret)
        b = self.prg.words(y.shape)
        c = self._correction("matmul", shape, x=x.shape, y=y.shape)
        d, e = self._open_several(x.parts[0] - a, y.parts[0] - b)
        return Secret((ring_matmul(d, y.parts[0]) + ring_matmul(a, e) + c)[None])

    def truncate(self, x: Secret, bits: int) -> Secret:
        cut = truncate_first if self.rank == 0 else truncate_second
        return Secret(cut(x.parts[0], bits)[None])

    def both(self, x: Secret, y: Secret) -> Secret:
        a, b = self.prg.words(x.shape), self.prg.words(y.shape)
        c = self._correction("both", x.shape, x=x.shape, y=y.shape)
        masked = np.stack([x.parts[0] ^ a, y.parts[0] ^ b])
        d, e = masked ^ self._exchange(masked)
        return Secret(((d & y.parts[0]) ^ (a & e) ^ c)[None])

    def summands_as_bits(self, x: Secret) -> tuple[Secret, Secret]:
        # Each summand is known to one party, whose bits are then shared with zeros of the other.
        none = np.zeros_like(x.parts)
        return (Secret(x.parts), Secret(none)) if self.rank == 0 else (Secret(none), Secret(x.parts))

    def bit_to_number(self, bits: Secret) -> Secret:
        one = np.uint64(1)
        hidden = self.prg.words(bits.shape) & one
        number = self._correction("bit", bits.shape, x=bits.shape)
        mask = (bits.parts[0] & one) ^ hidden
        z = mask ^ self._exchange(mask)
        # r + z − 2 z r, of which z is public.
        found = Secret((number - np.uint64(2) * z * number)[None])
        return self.add_public(found, z)

    def shuffle(self, rows: Secret) -> Secret:
        return self._permute(self._permute(rows, 0), 1)

    def fix(self, y: Secret) -> MaskedOperand:
        mask = self.prg.words(y.shape)
        self._operands += 1
        self._tell("fix", fixed=self._operands, x=y.shape)
        return MaskedOperand(self._operands, self._open_several(y.parts[0] - mask)[0], y.parts[0])

    def extend(self, fixed: FixedOperand, more: Secret) -> MaskedOperand:
        assert isinstance(fixed, MaskedOperand)
        if fixed.steps:
            raise ValueError("a view of a fixed operand cannot be extended; extend the operand itself.")
        mask = self.prg.words(more.shape)
        self._tell("extend", fixed=fixed.number, x=more.shape)
        (new,) = self._open_several(more.parts[0] - mask)
        opened = np.concatenate([fixed.opened, new], axis=-2)
        return MaskedOperand(fixed.number, opened, np.concatenate([fixed.own, more.parts[0]], axis=-2))

    def done(self) -> None:
        """Let the dealer go, until the next program."""
        self._tell("done")

    def _permute(self, rows: Secret, owner: int) -> Secret:
        """An order that only `owner` knows: the other sends its masked rows and takes a mask for a share."""
        order_shape = rows.shape[:-1]
        if self.rank == owner:
            order = self.prg.orders(order_shape)
        else:
            self.prg.skip()
        mine = self.prg.words(rows.shape)
        # Of the pair a (masks the rows) and b (the other's new share), and what makes up for both.
        dealt = self._correction(f"permute {owner}", rows.shape, x=rows.shape)
        if self.rank != owner:
            # Party 1 as the other one is dealt its new share; party 0 draws both.
            mask, new = (mine, dealt) if self.rank == 1 else (mine, self._second)
            self.channel.transfer({owner: (rows.parts[0] - mask).tobytes()}, ())
            return Secret(new[None])
        payload = self.channel.transfer({}, (1 - owner,))[1 - owner]
        theirs = np.frombuffer(payload, dtype=np.uint64).reshape(rows.shape)
        change = self._second if self.rank == 0 else dealt
        whole = _ordered(rows.parts[0] + theirs, order) + change
        return Secret(whole[None])

    def _correction(self, kind: str, shape: tuple[int, ...], **request: Any) -> Ring:
        """This party's share of what the dealer computes: drawn by party 0, sent to party 1."""
        drawn = self.prg.words(shape)
        self._second = drawn
        if self.rank == 0:
            return drawn
        dealt = self._tell(kind, **request)
        assert dealt is not None
        return dealt.reshape(shape)

    def _tell(self, kind: str, **request: Any) -> Ring | None:
        if self.rank == 0:
            return None
        assert self.dealer is not None
        return self.dealer.answer({"kind": kind, "counter": self.prg.counter, **request})

    def _exchange(self, mine: NDArray[np.uint64]) -> Ring:
        peer = 1 - self.rank
        payload = self.channel.transfer({peer: mine.tobytes()}, (peer,))[peer]
        return np.frombuffer(payload, dtype=np.uint64).reshape(mine.shape)

    def _open_several(self, *masked: Ring) -> list[Ring]:
        """Summands opened in one message."""
        flat = np.concatenate([part.ravel() for part in masked])
        flat = flat + self._exchange(flat)
        found, start = [], 0
        for part in masked:
            found.append(flat[start : start + part.size].reshape(part.shape))
            start += part.size
        return found


def _ordered(rows: Ring, order: NDArray[np.int64]) -> Ring:
    return np.take_along_axis(rows, order[..., None], axis=-2)
