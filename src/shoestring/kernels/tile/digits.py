"""Digits of thread and slot numbers: what the algebra of register layouts computes with.

A layout's modes, written as digits with strides, make every operation on layouts an edit of two lists.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shoestring.errors import LayoutError


@dataclass(frozen=True)
class Digit:
    """A digit (0 .. size − 1) of a thread or slot number that adds digit · stride to coordinate `dim`.

    `dim=None`: a replica digit, which adds nothing.
    """

    size: int
    dim: int | None
    stride: int


def homes_of_modes(shape: tuple[int, ...], mode_shape: tuple[int, ...]) -> list[Digit]:
    """For each mode its dimension and the stride it has there."""
    if any(n < 1 for n in (*shape, *mode_shape)):
        raise LayoutError(f"shape {list(shape)} and mode sizes {list(mode_shape)} must be positive")
    homes: list[Digit] = []
    sizes = iter(enumerate(mode_shape))
    pending = next(sizes, None)
    for dim, extent in enumerate(shape):
        left = extent
        while pending is not None and left > 1 and left % pending[1] == 0:
            left //= pending[1]
            homes.append(Digit(pending[1], dim, left))
            pending = next(sizes, None)
        if left != 1:
            raise LayoutError(f"mode sizes {list(mode_shape)} do not multiply to shape {list(shape)}")
    while pending is not None and pending[1] == 1 and shape:
        homes.append(Digit(1, len(shape) - 1, 1))
        pending = next(sizes, None)
    if pending is not None:
        raise LayoutError(f"mode sizes {list(mode_shape)} do not multiply to shape {list(shape)}")
    return homes


def place(digit: Digit) -> tuple[int, int]:
    """Sorts digits by dimension, slowest first."""
    return (-1 if digit.dim is None else digit.dim, -digit.stride)


def merged(digits: Iterator[Digit]) -> tuple[Digit, ...]:
    """Without digits of size 1; neighbours that count on as one digit are one."""
    merged: list[Digit] = []
    for digit in digits:
        if digit.size == 1:
            continue
        last = merged[-1] if merged else None
        if (
            last
            and digit.dim is not None
            and last.dim == digit.dim
            and last.stride == digit.size * digit.stride
        ):
            merged[-1] = Digit(last.size * digit.size, digit.dim, digit.stride)
        else:
            merged.append(digit)
    return tuple(merged)


def without_tail(digits: Sequence[Digit], tail: Sequence[Digit]) -> list[Digit] | None:
    """`digits` less its end `tail`; a digit may be cut where the tail begins. None where it is no tail."""
    rest = list(digits)
    for wanted in reversed(tail):
        last = rest.pop() if rest else None
        if last == wanted:
            continue
        fits = last and last.dim is not None and (last.dim, last.stride) == (wanted.dim, wanted.stride)
        if last is None or not fits or last.size % wanted.size:
            return None
        rest.append(Digit(last.size // wanted.size, last.dim, last.stride * wanted.size))
    return rest


def without_head(digits: Sequence[Digit], head: Sequence[Digit]) -> list[Digit] | None:
    """`digits` less its start `head`; a digit may be cut where the head ends. None where it is no head."""
    rest = list(reversed(digits))
    for wanted in head:
        first = rest.pop() if rest else None
        if first == wanted:
            continue
        if first is None or first.dim is None or first.dim != wanted.dim or first.size % wanted.size:
            return None
        if first.stride * first.size != wanted.stride * wanted.size:
            return None
        rest.append(Digit(first.size // wanted.size, first.dim, first.stride))
    return list(reversed(rest))


def cut(
    digit: Digit, old_stride: Sequence[int], new_stride: Sequence[int], shape: Sequence[int]
) -> list[Digit]:
    """The digit as digits of the new shape, slowest first."""
    if digit.dim is None:
        return [digit]
    low = digit.stride * old_stride[digit.dim]
    end, pieces = low * digit.size, []
    for dim in range(len(shape)):
        start, stop = max(low, new_stride[dim]), min(end, new_stride[dim] * shape[dim])
        if start >= stop:
            continue
        if stop % start or start % low or start % new_stride[dim]:
            raise LayoutError(f"a mode of {digit.size} with stride {low} straddles dimension {dim} unevenly")
        pieces.append(Digit(stop // start, dim, start // new_stride[dim]))
    return pieces
