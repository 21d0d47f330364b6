"""Steps between registers on a GPU: views, element-wise work, matrix steps on tensor cores or plain units."""

from collections.abc import Sequence

import numpy as np

from shoestring.kernels.tile import ir
from shoestring.kernels.tile.alignment import choose_atom, fit_atom, operand_a, operand_b, slots_of_operand
from shoestring.kernels.tile.cuda.emitter import Emitter, Held
from shoestring.kernels.tile.expressions import Expr
from shoestring.kernels.tile.fragments import FMA
from shoestring.kernels.tile.layout import RegisterLayout

_FLOAT = {
    "add": "({} + {})", "sub": "({} - {})", "mul": "({} * {})", "div": "({} / {})",
    "mod": "fmodf({}, {})", "max": "greater({}, {})", "min": "lesser({}, {})",
    "neg": "(-{})", "abs": "fabsf({})", "exp": "expf({})", "exp2": "exp2f({})", "log": "logf({})",
    "sqrt": "sqrtf({})", "rsqrt": "(1.0f / sqrtf({}))", "tanh": "tanhf({})",
}  # fmt: skip
_INT = {
    "add": "(int32_t)((uint32_t){} + (uint32_t){})", "sub": "(int32_t)((uint32_t){} - (uint32_t){})",
    "mul": "(int32_t)((uint32_t){} * (uint32_t){})", "max": "max({}, {})", "min": "min({}, {})",
    "neg": "(int32_t)(0u - (uint32_t){})", "abs": "abs({})",
}  # fmt: skip
_IN_PAIRS = ("add", "sub", "mul")


def allocate_register(e: Emitter, step: ir.AllocateRegister) -> None:
    if step.init is None:
        return
    held = e.register(step.out)
    code = int(step.out.dtype.encode(np.array([step.init], np.float32))[0])
    stream = sum(code << (slot * held.bits) for slot in range(held.slots))
    for number in range(held.count):
        word = stream >> (32 * number) & 0xFFFFFFFF
        e.line(f"{held.name}[{number}] = {held.from_bits(f'{word:#x}u')};")


def view(e: Emitter, step: ir.View) -> None:
    """The same registers under another name; where one of them changes later, or is a float, a copy."""
    source, out = e.register(step.source), e.register(step.out)
    if e.rename(step.out, step.source):
        e.line(f"/* {out.name} = {source.name} as {out.dtype} {out.layout!r} */")
        return
    for number in range(out.count):
        e.line(f"{out.name}[{number}] = {out.from_bits(source.word(number))};")


def move(e: Emitter, step: ir.Transpose | ir.Squeeze | ir.Unsqueeze) -> None:
    """Other dimensions, the same registers."""
    if not e.rename(step.out, step.source):
        source, out = e.register(step.source), e.register(step.out)
        for number in range(out.count):
            e.line(f"{out.name}[{number}] = {source.name}[{number}];")


def assign(e: Emitter, step: ir.Assign) -> None:
    source, out = e.register(step.source), e.register(step.out)
    slots = slots_of_operand(out.layout, source.layout)
    if slots == tuple(range(source.slots)):
        for number in range(out.count):
            e.line(f"{out.name}[{number}] = {source.name}[{number}];")
    elif out.bits >= 16:
        e.put(out, [e.value(source, slot) for slot in slots])
    else:
        raise e.refuse(step, f"codes of {out.dtype} in other slots have no CUDA form: {source.layout!r}")


def unary(e: Emitter, step: ir.Unary) -> None:
    source, out = e.register(step.source), e.register(step.out)
    slots = slots_of_operand(out.layout, source.layout)
    e.put(out, [_operation(e, step, step.op, e.value(source, slot)) for slot in slots])


def elementwise(e: Emitter, step: ir.Elementwise) -> None:
    a, b, out = e.register(step.a), e.register(step.b), e.register(step.out)
    left, right = (slots_of_operand(out.layout, held.layout) for held in (a, b))
    if out.bits == 16 and step.op in _IN_PAIRS and out.slots % 2 == 0:
        for word in range(out.count):
            x, y = (
                e.pair(held, slots[2 * word], slots[2 * word + 1]) for held, slots in ((a, left), (b, right))
            )
            e.line(f"{out.name}[{word}] = {step.op}_{out.dtype.name}({x}, {y});")
        return
    values = [
        _operation(e, step, step.op, e.value(a, i), e.value(b, j)) for i, j in zip(left, right, strict=True)
    ]
    e.put(out, values)


def elementwise_scalar(e: Emitter, step: ir.ElementwiseScalar) -> None:
    source, out = e.register(step.source), e.register(step.out)
    kind = "int32_t" if out.dtype.name == "i32" else "float"
    text = e.scalar(step.value) if isinstance(step.value, Expr) else f"{float(np.float32(step.value))!r}"
    slots = slots_of_operand(out.layout, source.layout)
    e.put(out, [_operation(e, step, step.op, e.value(source, s), f"({kind})({text})") for s in slots])


def _operation(
    e: Emitter, step: ir.Unary | ir.Elementwise | ir.ElementwiseScalar, op: str, *operands: str
) -> str:
    table = _INT if step.out.dtype.name == "i32" else _FLOAT
    if op not in table:
        raise e.refuse(step, f"{op} of {step.out.dtype} has no CUDA form; Cast to f32")
    return table[op].format(*operands)


def dot(e: Emitter, step: ir.Dot) -> None:
    """out = c + a · b: a fragment at a time on tensor cores, else each thread for itself."""
    kinds = (step.a.dtype, step.b.dtype, step.c.dtype)
    layouts = (step.a.registers, step.b.registers, step.c.registers)
    atom = choose_atom(e.prepared.target.atoms(*kinds), *layouts)
    a, b, c = fit_atom(atom, *layouts)
    if step.out.name != step.c.name:
        source, out = e.register(step.c), e.register(step.out)
        for number in range(out.count):
            e.line(f"{out.name}[{number}] = {source.name}[{number}];")
    k = a.shape[1]
    rows = slots_of_operand(operand_a(c, k), a)
    columns = slots_of_operand(operand_b(c, k), b)
    row_at, column_at = _by_index(operand_a(c, k)), _by_index(operand_b(c, k))
    held = [e.register(t) for t in (step.a, step.b, step.out)]
    for depth in range(k):
        for slot, (m, n) in enumerate(c.index_table[0].tolist()):
            parts = (rows[row_at[m, depth]], columns[column_at[depth, n]], slot)
            if atom is FMA or atom == FMA:
                _multiply_add(e, step, held, parts)
            else:
                starts = [
                    f"{h.name} + {part * inner.local_size * h.bits // 32}"
                    for h, part, inner in zip(held, parts, (atom.a, atom.b, atom.c), strict=True)
                ]
                e.line(f"multiply_{step.a.dtype.name}({starts[2]}, {starts[0]}, {starts[1]});")


def _by_index(layout: RegisterLayout) -> dict[tuple[int, int], int]:
    """(row, column) of the first thread -> slot: what other threads hold lies beside it."""
    return {(int(i), int(j)): slot for slot, (i, j) in enumerate(layout.index_table[0])}


def _multiply_add(e: Emitter, step: ir.Dot, held: Sequence[Held], parts: tuple[int, int, int]) -> None:
    a, b, c = held
    if c.bits != 32 or c.dtype.name != "f32":
        raise e.refuse(step, f"sums in {c.dtype} have no CUDA form; accumulate in f32")
    x, w = e.value(a, parts[0]), e.value(b, parts[1])
    e.line(f"{c.name}[{parts[2]}] = fmaf({x}, {w}, {c.name}[{parts[2]}]);")
