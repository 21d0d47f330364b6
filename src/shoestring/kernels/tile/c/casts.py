"""Casts: decoding and rounding between element types."""

import math

import numpy as np

from shoestring.kernels.tile import ir
from shoestring.kernels.tile.alignment import slots_of_operand
from shoestring.kernels.tile.c.emitter import Emitter, Slot
from shoestring.kernels.tile.c.isa import literal
from shoestring.kernels.tile.c.registers import Held
from shoestring.kernels.tile.types import DataType, cast_table
from shoestring.numbers.formats import FloatFormat


def cast(e: Emitter, step: ir.Cast) -> None:
    """To 16 and 32 bits a vector at a time, to narrow types code by code."""
    if step.out.dtype.is_narrow:
        _narrow(e, step)
        return
    source, out = e.register(step.source), e.register(step.out)
    same = (source.dtype, source.layout) == (out.dtype, out.layout) and step.source.name not in e.lazy
    if same and e.written_once(step.source, step.out):
        e.rename(step.out, step.source)
        return
    slot = _converted(e, step)
    narrow = step.source.dtype.is_narrow
    if step.out.dtype.bits == 32 and e.may_wait(step, step.out, cheap=narrow):
        e.wait(step.out, slot, codes=step.source if narrow else None)
    else:
        e.put(step.out, slot)


def _converted(e: Emitter, step: ir.Cast) -> Slot:
    source, uniform = e.operand(step.out, step.source), e.register(step.out).uniform
    old, new = step.source.dtype.name == "i32", step.out.dtype.name == "i32"
    if old == new:
        return source
    if new:
        rounded = "(int32_t)round_saturated({}, -2147483648.0, 2147483647.0)" if uniform else "vi_round({})"
        return lambda group, slot: rounded.format(source(group, slot))
    converted = "(float){}" if uniform else "vf_from_int({})"
    return lambda group, slot: converted.format(source(group, slot))


def _narrow(e: Emitter, step: ir.Cast) -> None:
    source, out = e.register(step.source), e.register(step.out)
    slots = slots_of_operand(out.layout, source.layout)
    with e.block(""):
        before, after = _copied(e, source), e.fresh("codes")
        e.line(f"{out.c_type} {after}[{out.groups * out.count}];")
        e.line(f"memset({after}, 0, sizeof {after});")
        e.line(f"static const uint16_t slots[{len(slots)}] = {{{', '.join(map(str, slots))}}};")
        step_by = "thread += LANES" if out.uniform else "thread++"
        with (
            e.block(f"for (int thread = 0; thread < {out.layout.threads}; {step_by})"),
            e.block(f"for (int slot = 0; slot < {out.slots}; slot++)"),
        ):
            code = f"get_field({lane_words(source, before)}, slots[slot], {source.bits})"
            e.line(f"const uint32_t old = {code};")
            rounded = rounding(e, out.dtype, decoding(e, source.dtype, "old"))
            e.line(f"put_field({lane_words(out, after)}, slot, {out.bits}, {rounded});")
        for number in range(out.groups * out.count):
            e.line(f"{out.name}[{number}] = {after}[{number}];")


def _copied(e: Emitter, held: Held) -> str:
    """A copy of registers in memory, so that the registers themselves need none."""
    name, total = e.fresh("each"), held.groups * held.count
    e.line(f"{held.c_type} {name}[{total}];")
    for number in range(total):
        e.line(f"{name}[{number}] = {held.register(0, number)};")
    return name


def lane_words(held: Held, name: str) -> str:
    """First arguments of get_field and put_field for the registers of `thread`, kept under `name`."""
    if held.uniform:
        return f"(uint32_t *){name} + thread / LANES * {held.count}, 1"
    return f"(uint32_t *){name} + thread / LANES * {held.count * held.lanes} + thread % LANES, LANES"


def decoding(e: Emitter, dtype: DataType, code: str) -> str:
    """C expression: the value of one code."""
    wide = {
        "f32": f"bits_float({code})",
        "i32": f"(int32_t){code}",
        "f16": f"half_to_float({code})",
        "bf16": f"bits_float({code} << 16)",
    }
    if dtype.name in wide:
        return wide[dtype.name]
    e.decoders[dtype.name] = dtype
    return f"values_{dtype.name}[{code}]"


def rounding(e: Emitter, dtype: DataType, value: str) -> str:
    """C expression: the code of a value in a narrow type."""
    if not dtype.is_float:
        return f"round_saturated({value}, {dtype.min_value}, {dtype.max_value})"
    e.encoders[dtype.name] = dtype
    assert isinstance(dtype.format, FloatFormat)
    nan = int(dtype.encode(np.array([math.nan], np.float32))[0]) if dtype.format.has_nan else -1
    limits = f"limits_{dtype.name}"
    return f"round_narrow((float){value}, {limits}, sizeof {limits} / 4, {dtype.bits}, {nan})"


def limits_table(dtype: DataType) -> str:
    """The static table of `round_narrow`: half-way points, one step lower where the tie goes up."""
    values = cast_table(dtype)[: 1 << (dtype.bits - 1)]
    values = values[np.isfinite(values)].astype(np.float64)
    half_way = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    goes_up = dtype.encode(half_way) == np.arange(1, len(values))
    limits = np.where(goes_up, np.nextafter(half_way, np.float32(0)), half_way)
    assert isinstance(dtype.format, FloatFormat)
    if not dtype.format.finite_only:  # finite values saturate, only infinity has the code of infinity
        limits = np.append(limits, np.finfo(np.float32).max)
    text = ", ".join(map(literal, limits.tolist()))
    return f"static const float limits_{dtype.name}[{len(limits)}] = {{{text}}};"
