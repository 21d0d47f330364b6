"""Comparisons of secrets: an addition bit by bit gives the sign, a fold of all bits tells zero.

Source: Kogge and Stone 1973, "A Parallel Algorithm for the Efficient Solution of a General Class of
Recurrence Equations" (prefix adder); Mohassel and Rindal 2018, "ABY3", sections 5.3 and 5.4.
"""

from shoestring.generation.secret.engine import Engine
from shoestring.generation.secret.shares import Secret, concatenate

SHIFTS = (1, 2, 4, 8, 16, 32)


def negative_bit(engine: Engine, x: Secret) -> Secret:
    """Whether x < 0, as a shared bit.

    Carries over all bits below the sign: generate g = u & v, propagate p = u ^ v; over spans that double,
    g ← g ^ (p & g'), p ← p & p'. The last p is not needed.
    """
    u, v = engine.summands_as_bits(x)
    carries, through = engine.both(u, v), u ^ v
    unlike = through
    for shift in SHIFTS[:-1]:
        pair = engine.both(
            concatenate([through[None], through[None]], -len(x.shape) - 1),
            concatenate([carries.left(shift)[None], through.left(shift)[None]], -len(x.shape) - 1),
        )
        carries, through = carries ^ pair[0], pair[1]
    carries = carries ^ engine.both(through, carries.left(SHIFTS[-1]))
    return (unlike ^ carries.left(1)).right(63)


def zero_bit(engine: Engine, x: Secret) -> Secret:
    """Whether x = 0, as a shared bit: u + v = 0 where all bits of (u − 1) ^ v are set."""
    u, v = engine.summands_as_bits(engine.add_public(x, -1))
    alike = u ^ v
    for shift in reversed(SHIFTS):
        alike = engine.both(alike, alike.right(shift))
    return alike


def less(engine: Engine, x: Secret, y: Secret) -> Secret:
    """x < y as the integer 0 or 1."""
    return engine.bit_to_number(negative_bit(engine, x - y))


def equal(engine: Engine, x: Secret, y: Secret) -> Secret:
    """x = y as the integer 0 or 1."""
    return engine.bit_to_number(zero_bit(engine, x - y))


def larger(engine: Engine, x: Secret, y: Secret) -> Secret:
    """max(x, y): y + [y < x] (x − y)."""
    return y + engine.multiply(less(engine, y, x), x - y)


def maximum(engine: Engine, x: Secret) -> Secret:
    """The largest of the last axis, by a tree of pairs; an odd one out waits a level."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        pairs = larger(engine, x[..., :half], x[..., half : 2 * half])
        x = concatenate([pairs, x[..., 2 * half :]], -1)
    return x[..., 0]
