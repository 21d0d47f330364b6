"""Casts on a GPU: narrow integers by the exponent trick, narrow floats by moving their fields.

Source: Tilus (2025), section 7 (vectorised casts); Kim et al. 2022, "Who Says Elephants Can't Run", section 3
(integers in the significand of 1024).
"""

import numpy as np

from shoestring.kernels.tile import ir
from shoestring.kernels.tile.alignment import slots_of_operand
from shoestring.kernels.tile.cuda.emitter import Emitter, Held
from shoestring.kernels.tile.types import DataType, cast_table
from shoestring.numbers.formats import FloatFormat


def cast(e: Emitter, step: ir.Cast) -> None:
    source, out = e.register(step.source), e.register(step.out)
    slots = slots_of_operand(out.layout, source.layout)
    if source.dtype == out.dtype and slots == tuple(range(out.slots)) and e.rename(step.out, step.source):
        return
    if out.dtype.is_narrow:
        _between_codes(e, step, slots)
    elif source.dtype.is_narrow and out.bits == 16 and _in_pairs(source.dtype, out.dtype):
        for word in range(-(-out.slots // 2)):
            last = min(2 * word + 1, out.slots - 1)
            pair = f"{_code(e, source, slots[2 * word])} | {_code(e, source, slots[last])} << 16"
            e.line(f"{out.name}[{word}] = {_converted_pair(source.dtype, out.dtype, pair)};")
    else:
        e.put(out, [_value(e, source, out.dtype, slot) for slot in slots])


def _code(e: Emitter, held: Held, slot: int) -> str:
    return e.code(held, slot)


def _in_pairs(old: DataType, new: DataType) -> bool:
    """Whether codes become 16-bit floats two at a time: all integers, and floats whose fields fit f16."""
    if isinstance(old.format, FloatFormat):
        finite = bool(np.isfinite(cast_table(old)).all())
        return new.name == "f16" and old.format.exp_bits <= 4 and finite
    return new.name == "f16" or old.bits <= 7


def _converted_pair(old: DataType, new: DataType, pair: str) -> str:
    """C expression: a pair of codes, one in each half of a word, as a pair of 16-bit floats."""
    kind = new.name
    if isinstance(old.format, FloatFormat):
        significand, exponent = old.format.sig_bits, old.format.exp_bits
        sign, fields = 1 << (old.bits - 1), (1 << (old.bits - 1)) - 1
        up, places = 16 - old.bits, 10 - significand
        factor = new.encode(np.array([2.0 ** (15 - old.format.bias)], np.float32))[0]
        both = _twice(int(factor))
        assert exponent <= 4
        moved = f"placed({pair}, {_twice(sign)}, {up}, {_twice(fields)}, {places})"
        return f"mul_{kind}({moved}, {both})"
    # 1024 in f16 and 128 in bf16 have a unit in their last place
    one, base = (0x6400, 1024.0) if kind == "f16" else (0x4300, 128.0)
    flipped, shift = 0, base
    if not old.is_unsigned:
        flipped, shift = 1 << (old.bits - 1), base + 2 ** (old.bits - 1)
    subtracted = int(new.encode(np.array([shift], np.float32))[0])
    return f"sub_{kind}(({pair}) ^ {_twice(one | flipped)}, {_twice(subtracted)})"


def _twice(code: int) -> str:
    return f"{code << 16 | code:#010x}u"


def _value(e: Emitter, source: Held, new: DataType, slot: int) -> str:
    """C expression: one value, a float or, for i32, an integer."""
    old = source.dtype
    if old.is_narrow:
        return _narrow_value(e, source, new, slot)
    text = e.value(source, slot)
    if new.name == "i32" and old.name != "i32":
        return f"round_to_int({text})"
    return f"(float){text}" if old.name == "i32" and new.name != "i32" else text


def _narrow_value(e: Emitter, source: Held, new: DataType, slot: int) -> str:
    old, code = source.dtype, e.code(source, slot)
    if isinstance(old.format, FloatFormat):
        if not np.isfinite(cast_table(old)).all():
            e.tables[old.name] = old
            text = f"values_{old.name}[{code}]"
        else:
            places, factor = 23 - old.format.sig_bits, 2.0 ** (127 - old.format.bias)
            sign, fields = 1 << (old.bits - 1), (1 << (old.bits - 1)) - 1
            moved = f"placed({code}, {sign:#x}u, {32 - old.bits}, {fields:#x}u, {places})"
            text = f"__uint_as_float({moved}) * {factor.hex()}f"
        return f"round_to_int({text})" if new.name == "i32" else text
    number = (
        f"(int32_t){code}"
        if old.is_unsigned
        else f"((int32_t)({code} << {32 - old.bits}) >> {32 - old.bits})"
    )
    return number if new.name == "i32" else f"(float)({number})"


def _between_codes(e: Emitter, step: ir.Cast, slots: tuple[int, ...]) -> None:
    """Unsigned codes to unsigned codes; the larger ones saturate."""
    source, out = e.register(step.source), e.register(step.out)
    if not (source.dtype.is_unsigned and source.dtype.is_narrow and out.dtype.is_unsigned):
        raise e.refuse(step, f"rounding to {out.dtype} has no CUDA form; quantise before the program runs")
    for number in range(out.count):
        e.line(f"{out.name}[{number}] = 0;")
    for slot, old in enumerate(slots):
        code, (word, start) = e.code(source, old), divmod(slot * out.bits, 32)
        if out.bits < source.bits:
            code = f"min({code}, {(1 << out.bits) - 1}u)"
        e.line(f"{out.name}[{word}] |= {code} << {start};")
        if start + out.bits > 32:
            e.line(f"{out.name}[{word + 1}] |= {code} >> {32 - start};")


def values_table(dtype: DataType) -> str:
    """The values of all codes of a type with special ones, in constant memory."""
    bits = cast_table(dtype).view(np.uint32).tolist()
    words = ", ".join(f"{word:#x}u" for word in bits)
    name = f"values_{dtype.name}"
    table = f"__constant__ uint32_t {name}_bits[{len(bits)}] = {{{words}}};"
    return f"{table}\n#define {name} ((const float *){name}_bits)"
