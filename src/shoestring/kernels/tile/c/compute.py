"""Steps between registers: views, element-wise work, reductions and matrix steps."""

import numpy as np

from shoestring.kernels.tile import ir
from shoestring.kernels.tile.alignment import operand_a, operand_b, slots_of_operand
from shoestring.kernels.tile.c.byte_dot import byte_dot, emit_byte_dot
from shoestring.kernels.tile.c.emitter import Emitter, Slot
from shoestring.kernels.tile.c.isa import literal
from shoestring.kernels.tile.c.registers import Held
from shoestring.kernels.tile.expressions import Expr
from shoestring.kernels.tile.layout import RegisterLayout
from shoestring.kernels.tile.tensor import Tensor

CHAINS = 4
"""Sums of a matrix step that do not wait for one another: as many as hide the latency of a multiply-add."""

_SCALAR_FLOAT = {
    "add": "({} + {})", "sub": "({} - {})", "mul": "({} * {})", "div": "({} / {})",
    "mod": "fmodf({}, {})", "max": "greater({}, {})", "min": "lesser({}, {})",
    "neg": "(-{})", "abs": "fabsf({})", "exp": "expf({})", "exp2": "exp2f({})", "log": "logf({})",
    "sqrt": "sqrtf({})", "rsqrt": "(1.0f / sqrtf({}))", "tanh": "tanhf({})",
}  # fmt: skip
_SCALAR_INT = {
    "add": "wrapped_add({}, {})", "sub": "wrapped_sub({}, {})", "mul": "wrapped_mul({}, {})",
    "mod": "remainder_of({}, {})", "max": "larger({}, {})", "min": "smaller({}, {})",
    "neg": "wrapped_sub(0, {})", "abs": "magnitude_of({})",
}  # fmt: skip
_BY_LANE = {"mod", "exp", "exp2", "log", "tanh"}
"""Operations without a vector instruction: the C library does them lane by lane."""


def allocate_register(e: Emitter, step: ir.AllocateRegister) -> None:
    if step.init is None:
        return
    held, dtype = e.register(step.out), step.out.dtype
    code = int(dtype.encode(np.array([step.init], np.float32))[0])
    for group in range(held.groups):
        for number in range(held.count):
            if dtype.name == "f32":
                value = literal(step.init)
                text = value if held.uniform else f"vf_set1({value})"
            else:
                text = _word(held, code, number)
            e.line(f"{held.register(group, number)} = {text};")


def _word(held: Held, code: int, number: int) -> str:
    """Word `number` of a bit string of equal codes."""
    stream = sum(code << (slot * held.bits) for slot in range(held.slots))
    word = stream >> (32 * number) & 0xFFFFFFFF
    return f"{word:#x}u" if held.uniform else f"vi_set1({word:#x}u)"


def view(e: Emitter, step: ir.View) -> None:
    """The same registers under another name; where one of them changes later, or is a float, a copy."""
    source, out = e.register(step.source), e.register(step.out)
    scalars = source.uniform and out.uniform and "float" not in (source.c_type, out.c_type)
    same = scalars or (source.c_type, source.uniform) == (out.c_type, out.uniform)
    if e.written_once(step.source, step.out) and same:
        e.rename(step.out, step.source)
        e.line(f"/* {out.name} = {source.name} as {out.dtype} {out.layout!r} */")
        return
    for group in range(out.groups):
        for number in range(out.count):
            text = _bits(source, source.register(group, number))
            if source.uniform and not out.uniform:
                text = f"vi_set1({text})"
            if out.dtype.name == "f32":
                text = f"bits_float({text})" if out.uniform else f"vi_as_float({text})"
            e.line(f"{out.register(group, number)} = {text};")


def _bits(held: Held, register: str) -> str:
    if held.dtype.name != "f32":
        return register
    return f"float_bits({register})" if held.uniform else f"vf_bits({register})"


def move(e: Emitter, step: ir.Transpose | ir.Squeeze | ir.Unsqueeze) -> None:
    """Other dimensions, the same registers."""
    source, out = e.register(step.source), e.register(step.out)
    if e.written_once(step.source, step.out):
        e.rename(step.out, step.source)
        return
    for group in range(out.groups):
        for number in range(out.count):
            e.line(f"{out.register(group, number)} = {source.register(group, number)};")


def assign(e: Emitter, step: ir.Assign) -> None:
    """Codes to codes, slot by slot."""
    source, out = e.register(step.source), e.register(step.out)
    slots = slots_of_operand(step.out.registers, step.source.registers)
    if out.bits == 32 or slots == tuple(range(source.slots)):
        for group in range(out.groups):
            for number in range(out.count):
                text = source.register(group, slots[number] if out.bits == 32 else number)
                if source.uniform and not out.uniform:
                    text = f"{out.c_type}_set1({text})"
                e.line(f"{out.register(group, number)} = {text};")
        return
    for group in range(out.groups):
        for number in range(out.count):
            e.line(f"{out.register(group, number)} = {'0' if out.uniform else 'vi_set1(0)'};")
        for slot, old in enumerate(slots):
            word, start = divmod(slot * out.bits, 32)
            for part, shift in ((word, start), (word + 1, start - 32)):
                if shift <= 32 - 1 and shift + out.bits > 0 and part < out.count:
                    _or_code(e, source, out, group, old, part, shift)


def _or_code(e: Emitter, source: Held, out: Held, group: int, old: int, part: int, shift: int) -> None:
    mask = (1 << out.bits) - 1
    target = out.register(group, part)
    if source.uniform:
        code = f"get_field({source.name} + {group * source.count}, 1, {old}, {source.bits})"
        text = f"{code} << {shift}" if shift >= 0 else f"{code} >> {-shift}"
        e.line(f"{target} = {f'{target} | {text}' if out.uniform else f'vi_or({target}, vi_set1({text}))'};")
        return
    code = f"vi_and({e.field(source, group, old)}, vi_set1({mask}))"
    moved = f"vi_shl({code}, {shift})" if shift >= 0 else f"vi_shr({code}, {-shift})"
    e.line(f"{target} = vi_or({target}, {moved});")


def unary(e: Emitter, step: ir.Unary) -> None:
    source = e.operand(step.out, step.source)
    _result(e, step, lambda g, i: _operation(e, step.out, step.op, source(g, i)))


def elementwise(e: Emitter, step: ir.Elementwise) -> None:
    a, b = e.operand(step.out, step.a), e.operand(step.out, step.b)
    _result(e, step, lambda g, i: _operation(e, step.out, step.op, a(g, i), b(g, i)))


def elementwise_scalar(e: Emitter, step: ir.ElementwiseScalar) -> None:
    source, held = e.operand(step.out, step.source), e.register(step.out)
    whole = held.dtype.name == "i32"
    if isinstance(step.value, Expr):
        text = f"({'int32_t' if whole else 'float'})({e.scalar(step.value)})"
    else:
        text = str(int(step.value)) if whole else literal(float(np.float32(step.value)))
    value = text if held.uniform else f"{'vi' if whole else 'vf'}_set1({text})"

    def slot(group: int, number: int) -> str:
        return _operation(e, step.out, step.op, source(group, number), value)

    if isinstance(step.value, Expr):
        e.put(step.out, slot)  # a variable may have another value where the result is used
    else:
        _result(e, step, slot)


def _result(e: Emitter, step: ir.Unary | ir.Elementwise | ir.ElementwiseScalar, slot: Slot) -> None:
    if step.out.dtype.bits == 32 and e.may_wait(step, step.out):
        e.wait(step.out, slot)
    else:
        e.put(step.out, slot)


def _operation(e: Emitter, out: Tensor, op: str, *operands: str) -> str:
    held = e.register(out)
    whole = held.dtype.name == "i32"
    if held.uniform:
        return (_SCALAR_INT if whole else _SCALAR_FLOAT)[op].format(*operands)
    prefix = "vi" if whole else "vf"
    if op in _BY_LANE:
        return f"{prefix}_{op}_lanes({', '.join(operands)})"
    return f"{prefix}_{op}({', '.join(operands)})"


def reduce(e: Emitter, step: ir.Reduce) -> None:
    """Slots are combined, then the lanes that hold the rest of the dimension, then groups of threads."""
    source, out = e.register(step.source), e.register(step.out)
    bits = _reduced_lane_bits(source, step.dim)
    members = _members(e, step, source, out, bits)
    op = {"sum": "add"}.get(step.op, step.op)
    prefix = "vi" if source.dtype.name == "i32" else "vf"

    def slot(group: int, number: int) -> str:
        total = e.fresh("total")
        parts = [e.value(step.source, g, i, uniform=source.uniform) for g, i in members[group, number]]
        scalars = (_SCALAR_INT if prefix == "vi" else _SCALAR_FLOAT)[op]
        kind = {"vi": "int32_t", "vf": "float"}[prefix] if source.uniform else prefix
        e.line(f"{kind} {total} = {parts[0]};")
        for part in parts[1:]:
            combined = scalars.format(total, part) if source.uniform else f"{prefix}_{op}({total}, {part})"
            e.line(f"{total} = {combined};")
        for bit in bits:
            e.line(f"{total} = {prefix}_{op}({total}, {prefix}_swap({total}, {1 << bit}));")
        if out.uniform and not source.uniform:
            return f"{prefix}_first({total})"
        return f"{prefix}_set1({total})" if source.uniform and not out.uniform else total

    e.put(step.out, slot)


def _reduced_lane_bits(source: Held, dim: int) -> list[int]:
    """Bits of the lane number that count along the reduced dimension."""
    first = source.indices[0, :, 0]
    bits = range((source.lanes - 1).bit_length())
    return [bit for bit in bits if first[1 << bit, dim] != first[0, dim]]


def _members(
    e: Emitter, step: ir.Reduce, source: Held, out: Held, bits: list[int]
) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """For each (group, slot) of the result the (group, slot)s that its lanes combine.

    Raises: ProgramError where lanes would have to exchange more than halves of a vector.
    """
    extent = step.source.extents[step.dim]
    kept = source.indices.copy()
    kept[..., step.dim] = 0
    members: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for group in range(out.groups):
        for slot in range(out.slots):
            wanted = out.indices[group, 0, slot]
            places = np.argwhere((kept[:, 0] == wanted).all(-1))
            chosen: dict[int, tuple[int, int]] = {}
            for g, i in places.tolist():  # groups that hold copies count once, a group's own first
                place = int(source.indices[g, 0, i, step.dim])
                if place not in chosen or g == group:
                    chosen[place] = (g, i)
            members[group, slot] = list(chosen.values())
            seen = _combined(source, members[group, slot], bits, step.dim)
            of_lanes = out.indices[group, :, slot]
            lanes_fit = all((kept[g, :, i] == of_lanes).all() for g, i in members[group, slot])
            order = np.arange(source.lanes)
            lanes_fit &= all((of_lanes[order ^ (1 << bit)] == of_lanes).all() for bit in bits)
            if not lanes_fit or any(sorted(lane) != list(range(extent)) for lane in seen):
                reason = "lanes of a vector hold the dimension in an order that halving does not sum"
                raise e.refuse(step, f"{reason}: {source.layout!r}")
    return members


def _combined(source: Held, members: list[tuple[int, int]], bits: list[int], dim: int) -> list[list[int]]:
    """For each lane, the places along `dim` that end up in its sum."""
    lanes = [[int(source.indices[g, lane, i, dim]) for g, i in members] for lane in range(source.lanes)]
    for bit in bits:
        lanes = [lanes[lane] + lanes[lane ^ (1 << bit)] for lane in range(source.lanes)]
    return lanes


def dot(e: Emitter, step: ir.Dot) -> None:
    """out = c + a·b, each lane for itself: its weight is read once and multiplied for every row.

    Codes times whole numbers of 8 bits are multiplied as bytes, where there is an instruction for that.

    Where a lane has fewer sums than multiply-adds take turns, each sum is kept in several parts. Where it has
    more columns than rows, codes may be decoded with a surplus, which is taken off for each row at once.
    """
    if (by := byte_dot(e, step)) is not None:
        emit_byte_dot(e, step, by)
        return
    c, k = e.register(step.c), step.a.extents[1]
    rows = slots_of_operand(operand_a(c.layout, k), step.a.registers)
    columns = slots_of_operand(operand_b(c.layout, k), step.b.registers)
    row_index, column_index = (
        _outer_indices(operand_a(c.layout, k), 0),
        _outer_indices(operand_b(c.layout, k), 1),
    )
    sums = c.groups * c.slots
    chains = min(-(-CHAINS // sums), k)
    names = {
        (g, i, part): e.fresh("sum")
        for g in range(c.groups)
        for i in range(c.slots)
        for part in range(chains)
    }
    zero = "0.0f" if c.uniform else "vf_set1(0.0f)"
    kind = "float" if c.uniform else "vf"
    across, down = (len({_local(c, slot, dim) for slot in range(c.slots)}) for dim in (1, 0))
    bias = e.bias_of(step.b) if across > down and not c.uniform else None
    decoding = e.codes_with_bias if bias else e.codes_in_pairs
    with e.block(""), decoding():
        for (g, i, part), name in names.items():
            start = zero if part else e.value(step.c, g, i, uniform=c.uniform)
            e.line(f"{kind} {name} = {start};")
        first = [columns[column_index[_local(c, 0, 1), depth]] for depth in range(k)]
        order = list(range(k)) if bias else e.order_of_use(step.b, first)
        for turn, depth in enumerate(order):
            for group in range(c.groups):
                _dot_step(
                    e, step, names, group, depth, turn % chains, (rows, row_index), (columns, column_index)
                )
        finals = {}
        for g in range(c.groups):
            for i in range(c.slots):
                parts = [names[g, i, part] for part in range(chains)]
                finals[g, i] = _tree(parts, "({} + {})" if c.uniform else "vf_add({}, {})")
        if bias:
            _take_off(e, step, finals, bias.surplus, (rows, row_index))
        e.put(step.out, lambda g, i: finals[g, i])


Operand = tuple[tuple[int, ...], dict[tuple[int, int], int]]


def _dot_step(
    e: Emitter,
    step: ir.Dot,
    names: dict[tuple[int, int, int], str],
    group: int,
    depth: int,
    part: int,
    rows: Operand,
    columns: Operand,
) -> None:
    """One step along k of one group of threads."""
    c, b = e.register(step.c), e.register(step.b)
    weights: dict[int, str] = {}
    for slot in range(c.slots):
        column = columns[0][columns[1][_local(c, slot, 1), depth]]
        if column not in weights:
            weights[column] = e.fresh("w")
            kind = "float" if b.uniform and c.uniform else "vf"
            e.line(f"const {kind} {weights[column]} = {e.value(step.b, group, column, uniform=c.uniform)};")
        row = rows[0][rows[1][_local(c, slot, 0), depth]]
        x, total = e.value(step.a, group, row, uniform=c.uniform), names[group, slot, part]
        w = weights[column]
        if c.uniform:
            e.line(f"{total} += {x} * {w};")
        else:
            e.line(f"{total} = vf_fma({x}, {w}, {total});")


def _take_off(
    e: Emitter, step: ir.Dot, finals: dict[tuple[int, int], str], surplus: float, rows: Operand
) -> None:
    """Correct the sums of weights that are all too large by `surplus`."""
    c, k = e.register(step.c), step.a.extents[1]
    factor, names = e.fresh("surplus"), {}
    e.line(f"const vf {factor} = vf_set1({literal(-surplus)});")
    for (group, slot), text in finals.items():
        row = (group, _local(c, slot, 0))
        if row not in names:
            names[row] = e.fresh("excess")
            parts = [e.fresh("part") for _ in range(min(CHAINS, k))]
            for part in parts:
                e.line(f"vf {part} = vf_set1(0.0f);")
            for depth in range(k):
                x = e.value(step.a, group, rows[0][rows[1][row[1], depth]])
                part = parts[depth % len(parts)]
                e.line(f"{part} = vf_add({part}, {x});")
            e.line(f"const vf {names[row]} = vf_mul({_tree(parts, 'vf_add({}, {})')}, {factor});")
        finals[group, slot] = f"vf_add({text}, {names[row]})"


def _local(c: Held, slot: int, dim: int) -> int:
    """Index along `dim` of a slot of the first thread: the same slot of other threads lies beside it."""
    return int(c.layout.index_table[0, slot, dim])


def _outer_indices(layout: RegisterLayout, outer: int) -> dict[tuple[int, int], int]:
    """(index along the kept dimension, index along k) of the first thread -> slot."""
    table = layout.index_table[0]
    return {(int(row[outer]), int(row[1 - outer])): slot for slot, row in enumerate(table)}


def _tree(parts: list[str], form: str) -> str:
    while len(parts) > 1:
        parts = [
            form.format(*parts[i : i + 2]) if i + 1 < len(parts) else parts[i]
            for i in range(0, len(parts), 2)
        ]
    return parts[0]
