"""Matrix steps of codes with whole numbers of 8 bits: four products and their sum in one instruction.

Where one factor is a cast of i8 scalars and the other a cast of narrow codes, the sums are whole numbers of
units, which floats hold exactly up to 2^24: the instruction gives what multiply-adds of floats would, to the
last bit, without a float for each code.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from shoestring.kernels.tile import ir
from shoestring.kernels.tile.alignment import operand_a, operand_b, slots_of_operand
from shoestring.kernels.tile.c.byte_parts import ByteParts, byte_parts
from shoestring.kernels.tile.c.emitter import Emitter
from shoestring.kernels.tile.c.isa import literal
from shoestring.kernels.tile.c.registers import Held
from shoestring.kernels.tile.layout import RegisterLayout
from shoestring.kernels.tile.tensor import Tensor

QUAD = 4
"""Bytes that one lane of the instruction multiplies."""


@dataclass(frozen=True)
class ByteDot:
    """A matrix step that bytes can do. `x`: held whole numbers, `codes`: held codes; `x_quads` and
    `code_quads`: number of the group of four slots for (row or column, place along k / 4)."""

    x: Held
    codes: Held
    parts: ByteParts
    x_quads: Mapping[tuple[int, int], int]
    code_quads: Mapping[tuple[int, int], int]
    depth: int


def byte_dot(e: Emitter, step: ir.Dot) -> ByteDot | None:
    """How bytes do a step; None where the operands are not such, or the instruction set has no way."""
    x, codes = e.waiting_for.get(step.a.name), e.waiting_for.get(step.b.name)
    c, k = e.register(step.c), step.a.extents[1]
    if x is None or codes is None or x.dtype.name != "i8" or c.uniform or k % QUAD:
        return None
    held_x, held_codes = e.register(x), e.register(codes)
    parts = byte_parts(codes.dtype) if e.isa.multiplies_bytes(codes.dtype) else None
    if parts is None or not held_x.uniform or held_codes.uniform:
        return None
    x_quads = _quads(operand_a(c.layout, k), step.a, x, 0)
    code_quads = _quads(operand_b(c.layout, k), step.b, codes, 1)
    if x_quads is None or code_quads is None:
        return None
    return ByteDot(held_x, held_codes, parts, x_quads, code_quads, k // QUAD)


def _quads(
    needed: RegisterLayout, operand: Tensor, codes: Tensor, outer: int
) -> Mapping[tuple[int, int], int] | None:
    """(index along the kept dimension, place along k / 4) -> number of the four slots of `codes`; None where
    neighbours along k are not neighbours in a lane."""
    of_operand = slots_of_operand(needed, operand.registers)
    of_codes = slots_of_operand(operand.registers, codes.registers)
    places = {
        (int(index[outer]), int(index[1 - outer])): of_codes[of_operand[slot]]
        for slot, index in enumerate(needed.index_table[0])
    }
    quads = {(kept, k // QUAD): slot // QUAD for (kept, k), slot in places.items() if k % QUAD == 0}
    in_order = all(slot == QUAD * quads[kept, k // QUAD] + k % QUAD for (kept, k), slot in places.items())
    return quads if in_order else None


def emit_byte_dot(e: Emitter, step: ir.Dot, by: ByteDot) -> None:
    """Whole sums of the step for each part of the codes, then out = c + their sum as floats."""
    c = e.register(step.c)
    places = [(group, slot) for group in range(c.groups) for slot in range(c.slots)]
    sums = {(*place, part): e.fresh("sum") for place in places for part in range(len(by.parts.parts))}
    with e.block(""):
        for name in sums.values():
            e.line(f"vi {name} = vi_set1(0);")
        for quad in range(by.depth):
            for group in range(c.groups):
                _one_quad(e, by, c, sums, group, quad)
        surplus = _surplus(e, by, c, places) if by.parts.surplus else {}
        e.put(step.out, lambda g, i: _total(e, step, by, sums, surplus, g, i))


def _row(c: Held, slot: int) -> int:
    return int(c.layout.index_table[0, slot, 0])


def _x(by: ByteDot, group: int, row: int, quad: int) -> str:
    return f"vi_set1({by.x.register(group, by.x_quads[row, quad])})"


def _one_quad(
    e: Emitter, by: ByteDot, c: Held, sums: Mapping[tuple[int, int, int], str], group: int, quad: int
) -> None:
    decoded: dict[int, list[str]] = {}
    for slot in range(c.slots):
        row, column = map(int, c.layout.index_table[0, slot])
        if column not in decoded:
            decoded[column] = _decoded(e, by, group, by.code_quads[column, quad])
        for part, name in enumerate(decoded[column]):
            total = sums[group, slot, part]
            e.line(f"{total} = vi_dot_bytes({total}, {name}, {_x(by, group, row, quad)});")


def _decoded(e: Emitter, by: ByteDot, group: int, quad: int) -> list[str]:
    """Names of the bytes of four codes of each lane, for each part."""
    bits = by.codes.bits
    word, start = divmod(QUAD * bits * quad, 32)
    text = by.codes.register(group, word)
    if start + QUAD * bits > 32:
        text, start = e.isa.funnel(text, by.codes.register(group, word + 1), start), 0
    fields = e.fresh("fields")
    e.line(f"const vi {fields} = {e.isa.spread(text, start, bits)};")
    names = [e.fresh("bytes") for _ in by.parts.parts]
    for number, name in enumerate(names):
        e.line(f"const vi {name} = {_bytes(e, by, fields, number)};")
    return names


def _bytes(e: Emitter, by: ByteDot, fields: str, part: int) -> str:
    dtype = by.codes.dtype
    if not dtype.is_float:
        return e.isa.masked_bytes(fields, dtype.bits, flip_sign=not dtype.is_unsigned)
    table = f"bytes_{dtype.name}_{part}"
    e.byte_tables[table] = by.parts.parts[part].table
    return e.isa.byte_look_up(fields, table)


def _surplus(e: Emitter, by: ByteDot, c: Held, places: list[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """For each (group, row) the sum of x times the surplus, the same in all lanes."""
    byte = e.fresh("surplus")
    e.line(f"const vi {byte} = vi_set1({by.parts.surplus * 0x01010101:#x}u);")
    names: dict[tuple[int, int], str] = {}
    for group, slot in places:
        row = _row(c, slot)
        if (group, row) in names:
            continue
        name = names[group, row] = e.fresh("excess")
        e.line(f"vi {name} = vi_set1(0);")
        for quad in range(by.depth):
            e.line(f"{name} = vi_dot_bytes({name}, {byte}, {_x(by, group, row, quad)});")
    return names


def _total(
    e: Emitter,
    step: ir.Dot,
    by: ByteDot,
    sums: Mapping[tuple[int, int, int], str],
    surplus: Mapping[tuple[int, int], str],
    group: int,
    slot: int,
) -> str:
    """c + unit · (Σ factor · sum − surplus): the whole numbers are joined first."""
    parts = [sums[group, slot, part] for part in range(len(by.parts.parts))]
    if surplus:
        parts[-1] = f"vi_sub({parts[-1]}, {surplus[group, _row(e.register(step.c), slot)]})"
    whole = parts[0]
    for text, part in zip(parts[1:], by.parts.parts[1:], strict=True):
        whole = f"vi_add({whole}, vi_shl({text}, {part.factor.bit_length() - 1}))"
    before = e.value(step.c, group, slot)
    if by.parts.unit == 1.0:
        return f"vf_add({before}, vf_from_int({whole}))"
    return f"vf_fma(vf_from_int({whole}), vf_set1({literal(by.parts.unit)}), {before})"
