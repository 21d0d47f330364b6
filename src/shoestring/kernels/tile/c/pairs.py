"""Two codes of a lane decoded at once, as the halves of a word, which are bfloat16 numbers.

A run of codes that fills whole 16-bit halves of a lane's bit string is laid beside the next such run: then
each shift and each look-up serves two codes, and a number is widened by moving it to the upper half.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from shoestring.kernels.tile.c.registers import Held
from shoestring.kernels.tile.types import DataType, cast_table

if TYPE_CHECKING:
    from shoestring.kernels.tile.c.emitter import Emitter


def run_length(bits: int) -> int:
    """Codes of a run, the fewest that fill whole halves."""
    return 16 // math.gcd(bits, 16)


def halves_of_run(bits: int) -> int:
    return bits // math.gcd(bits, 16)


def can_pair(held: Held) -> bool:
    """Whether runs of an odd number of halves fill the slots in pairs: then no half has to change sides."""
    return halves_of_run(held.bits) % 2 == 1 and held.slots % (2 * run_length(held.bits)) == 0


def together(slots: Sequence[int], bits: int) -> list[int]:
    """Indices of `slots` in an order in which the two codes of a pair follow one another."""
    run = run_length(bits)

    def place(index: int) -> tuple[int, int, int]:
        block, within = divmod(slots[index], 2 * run)
        return block, within % run, within // run

    return sorted(range(len(slots)), key=place)


def is_brain(dtype: DataType) -> bool:
    """Whether every value is a bfloat16 number."""
    values = cast_table(dtype)
    return bool(np.isfinite(values).all()) and not (values.view(np.uint32) & 0xFFFF).any()


def brain_table(dtype: DataType, name: str) -> str:
    """A static table of the values of all codes as bfloat16."""
    codes = (cast_table(dtype).view(np.uint32) >> 16).tolist()
    return f"static const uint16_t {name}[{len(codes)}] = {{{', '.join(map(hex, codes))}}};"


class Pairs:
    """The pairs of one block of C: each is written where its first code is used, and named for the second."""

    def __init__(self, e: "Emitter") -> None:
        self._e = e
        self._words: dict[tuple[str, int, int], str] = {}
        self._values: dict[tuple[str, int, int], str] = {}

    def value(self, held: Held, group: int, slot: int) -> str:
        """C text of the float in a slot of a tensor for which `can_pair` holds."""
        run = run_length(held.bits)
        block, within = divmod(slot, 2 * run)
        upper, number = divmod(within, run)
        key = (held.name, group, block * run + number)
        if key not in self._values:
            self._values[key] = self._e.fresh("pair")
            decoded = f"decode_pair_{held.dtype.name}({self._codes(held, group, block, number)})"
            self._e.line(f"const vi {self._values[key]} = {decoded};")
            self._e.pair_decoders[held.dtype.name] = held.dtype
        pair = self._values[key]
        return f"vi_as_float({f'vi_and({pair}, vi_set1(0xffff0000))' if upper else f'vi_shl({pair}, 16)'})"

    def _codes(self, held: Held, group: int, block: int, number: int) -> str:
        """Two codes, each at the low end of its half below noise."""
        word, start = divmod(number * held.bits, 16)
        first = self._word(held, group, block, word)
        if start + held.bits > 16:
            return self._e.isa.funnel_halves(first, self._word(held, group, block, word + 1), start)
        return f"vi_shr_halves({first}, {start})" if start else first

    def _word(self, held: Held, group: int, block: int, half: int) -> str:
        """Half `half` of a run of codes below the same half of the next run."""
        runs = halves_of_run(held.bits)
        key = (held.name, group, block * runs + half)
        if key not in self._words:
            low = held.register(group, block * runs + half // 2)
            high = held.register(group, block * runs + (half + runs) // 2)
            text = self._e.isa.funnel(low, high, 16) if half % 2 else f"vi_low_high({low}, {high})"
            self._words[key] = self._e.fresh("halves")
            self._e.line(f"const vi {self._words[key]} = {text};")
        return self._words[key]
