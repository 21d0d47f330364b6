"""Register layouts by their definition, one element at a time: what the algebra is tested against.

Source: Tilus (2025), section 4.
"""

import itertools
import math
from collections.abc import Sequence

from shoestring.kernels.tile.layout import RegisterLayout

Index = tuple[int, ...]


def unravel(number: int, sizes: Sequence[int]) -> list[int]:
    """Row-major digits of a number."""
    digits = []
    for size in reversed(sizes):
        digits.append(number % size)
        number //= size
    return digits[::-1]


def ravel(digits: Sequence[int], sizes: Sequence[int]) -> int:
    """The number of row-major digits."""
    number = 0
    for digit, size in zip(digits, sizes, strict=True):
        number = number * size + digit
    return number


def naive_index_of(layout: RegisterLayout, thread: int, slot: int) -> Index:
    """Unravel thread and slot over their modes, then ravel the modes of every dimension."""
    spatial_sizes = [-m if m < 0 else layout.mode_shape[m] for m in layout.spatial_modes]
    value = [0] * len(layout.mode_shape)
    for mode, digit in zip(layout.spatial_modes, unravel(thread, spatial_sizes), strict=True):
        if mode >= 0:
            value[mode] = digit
    local_sizes = [layout.mode_shape[m] for m in layout.local_modes]
    for mode, digit in zip(layout.local_modes, unravel(slot, local_sizes), strict=True):
        value[mode] = digit
    index, start = [], 0
    for extent in layout.shape:
        stop = start
        while math.prod(layout.mode_shape[start:stop]) < extent:
            stop += 1
        index.append(ravel(value[start:stop], layout.mode_shape[start:stop]))
        start = stop
    return tuple(index)


def naive_table(layout: RegisterLayout) -> dict[tuple[int, int], Index]:
    """Index of the element at every (thread, slot)."""
    places = itertools.product(range(layout.threads), range(layout.local_size))
    return {(t, i): naive_index_of(layout, t, i) for t, i in places}


def naive_product(f: RegisterLayout, g: RegisterLayout) -> dict[tuple[int, int], Index]:
    """(f·g)(t, i) = f(t div T_g, i div N_g) ⊙ shape_g + g(t mod T_g, i mod N_g), for layouts of one rank."""
    table = {}
    threads, slots = g.threads, g.local_size
    for t, i in itertools.product(range(f.threads * threads), range(f.local_size * slots)):
        outer = naive_index_of(f, t // threads, i // slots)
        inner = naive_index_of(g, t % threads, i % slots)
        table[t, i] = tuple(a * n + b for a, n, b in zip(outer, g.shape, inner, strict=True))
    return table
