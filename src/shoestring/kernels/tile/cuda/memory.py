"""Loads, stores and copies on a GPU: as wide as the analysis of a program allows, masked where a tensor ends.

Source: Tilus (2025), section 8 (instruction selection, automatic vectorisation).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shoestring.kernels.tile import ir
from shoestring.kernels.tile.analysis import (
    Access,
    contiguous_elements,
    registers_of,
    shared_run,
    vector_of,
    window_of,
)
from shoestring.kernels.tile.c.windows import tile_index
from shoestring.kernels.tile.cuda.emitter import Emitter, Held
from shoestring.kernels.tile.expressions import Const, Expr
from shoestring.kernels.tile.fragments import can_ldmatrix, ldmatrix_part
from shoestring.kernels.tile.ir import Space, Tensor, Window
from shoestring.kernels.tile.layout import RegisterLayout
from shoestring.kernels.tile.memory_layout import row_major
from shoestring.kernels.tile.types import DataType

_UNITS = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint2", 16: "uint4"}


def c_element(dtype: DataType) -> str:
    """The C type of an element in memory; narrow ones are a stream of bytes."""
    if dtype.bits == 32:
        return "float" if dtype.is_float else "int32_t"
    return "uint16_t" if dtype.bits == 16 else "uint8_t"


@dataclass(frozen=True)
class _Place:
    """Coordinates in a tensor: C expressions, one for each of its dimensions."""

    tensor: Tensor
    coordinates: tuple[str, ...]

    def moved(self, window: Window, by: Sequence[int | str]) -> "_Place":
        """Further along the dimensions of the tile."""
        here = list(self.coordinates)
        for dim, step in zip(window.dims, by, strict=True):
            if step not in (0, "0"):
                here[dim] = f"{here[dim]} + {step}"
        return _Place(self.tensor, tuple(here))


def view_global(e: Emitter, step: ir.ViewGlobal) -> None:
    kind = c_element(step.out.dtype)
    e.line(f"{kind} *const {e.names[step.out.name]} = {e.names[step.pointer.name]};")


def allocate_shared(e: Emitter, step: ir.AllocateShared) -> None:
    memory = step.out.memory
    if memory.mode_shape != memory.shape:
        raise e.refuse(step, f"has no CUDA form for {memory}")
    kind, offset = c_element(step.out.dtype), e.prepared.shared.offsets[step.out.name]
    e.line(f"{kind} *const {e.names[step.out.name]} = ({kind} *)(shared + {offset});")


def load(e: Emitter, step: ir.LoadGlobal | ir.LoadShared) -> None:
    held = e.register(step.out)
    with e.block(""):
        if isinstance(step, ir.LoadShared) and _ldmatrix_applies(step):
            _load_matrices(e, step, held)
            return
        place = _thread_place(e, step, held.layout)
        vector = vector_of(step)
        if not vector.unit_bytes:
            _load_codes(e, step, held, place)
            return
        if vector.unit_bytes < 4:
            for number in range(held.count):
                e.line(f"{held.name}[{number}] = 0;")
        for slot in range(0, held.slots, vector.elements):
            _load_run(e, step, held, place, slot, vector.elements, vector.unit_bytes)


def store(e: Emitter, step: ir.StoreGlobal | ir.StoreShared) -> None:
    held, vector = e.register(step.source), vector_of(step)
    writer = _writer(held.layout)
    with e.block(f"if ({writer})" if writer else ""):
        place = _thread_place(e, step, held.layout)
        for slot in range(0, held.slots, vector.elements):
            _store_run(e, step, held, place, slot, vector.elements, vector.unit_bytes)


def _thread_place(e: Emitter, step: Access, layout: RegisterLayout) -> _Place:
    """Where a thread's slot 0 lies."""
    window = window_of(step)
    by_thread = tile_index(layout.spatial_digits, "thread", layout.rank)
    coordinates = [e.scalar(offset) for offset in window.offsets]
    for tile_dim, dim in enumerate(window.dims):
        coordinates[dim] = " + ".join([coordinates[dim], *by_thread[tile_dim]])
    return _named(e, _Place(window.tensor, tuple(coordinates)))


def _named(e: Emitter, place: _Place) -> _Place:
    names = []
    for text in place.coordinates:
        names.append(e.fresh("at"))
        e.line(f"const int {names[-1]} = {text};")
    return _Place(place.tensor, tuple(names))


def _offset(e: Emitter, place: _Place) -> str:
    """C expression: number of the element from the tensor's start."""
    if place.tensor.space is Space.GLOBAL:
        return _sum([_times(f"(int64_t)({c})", s, e) for c, s in _pairs(place, place.tensor.strides)])
    memory = place.tensor.memory
    strides = tuple(Const(stride) for stride in memory.mode_strides)
    plain = _sum([_times(f"({c})", s, e) for c, s in _pairs(place, strides)])
    if memory.swizzle is None:
        return plain
    return f"swizzled({plain}, {memory.swizzle.mask}, {memory.swizzle.shift})"


def _pairs(place: _Place, strides: Sequence[Expr]) -> list[tuple[str, Expr]]:
    return list(zip(place.coordinates, strides, strict=True))


def _times(coordinate: str, stride: Expr, e: Emitter) -> str:
    return coordinate if stride == Const(1) else f"{coordinate} * {e.scalar(stride)}"


def _sum(parts: list[str]) -> str:
    return " + ".join(parts) or "0"


def _inside(e: Emitter, place: _Place) -> str:
    """C condition: the element lies inside a global tensor; whole runs do where their first one does."""
    parts = [
        f"(unsigned)({c}) < (unsigned)({e.scalar(extent)})"
        for c, extent in zip(place.coordinates, place.tensor.shape, strict=True)
    ]
    return " && ".join(parts) or "1"


def _slot_place(held: Held, window: Window, place: _Place, slot: int) -> _Place:
    return place.moved(window, [int(i) for i in held.layout.index_table[0, slot]])


def _units(e: Emitter, place: _Place, unit: int, dtype: DataType, *, constant: bool = True) -> str:
    """C expression: pointer to the units of a run in memory."""
    const, base, offset = "const " if constant else "", e.names[place.tensor.name], _offset(e, place)
    if dtype.bits < 8:
        return f"({const}{_UNITS[unit]} *)({base} + ({offset}) * {dtype.bits} / 8)"
    return f"({const}{_UNITS[unit]} *)({base} + {offset})"


def _load_run(e: Emitter, step: Access, held: Held, place: _Place, slot: int, run: int, unit: int) -> None:
    here = _slot_place(held, window_of(step), place, slot)
    run_bytes, byte = run * held.bits // 8, slot * held.bits // 8
    with e.block(""):
        e.line(f"const {_UNITS[unit]} *from = {_units(e, here, unit, held.dtype)};")
        masked = here.tensor.space is Space.GLOBAL
        if masked:
            e.line(f"const bool inside = {_inside(e, here)};")
        for number in range(run_bytes // unit):
            at, name = byte + number * unit, e.fresh("u")
            zero = f"make_{_UNITS[unit]}({', '.join('0' * (unit // 4))})" if unit > 4 else "0"
            value = f"inside ? from[{number}] : {zero}" if masked else f"from[{number}]"
            e.line(f"const {_UNITS[unit]} {name} = {value};")
            if unit > 4:
                for part, field in enumerate("xyzw"[: unit // 4]):
                    e.line(f"{held.name}[{at // 4 + part}] = {held.from_bits(f'{name}.{field}')};")
            elif unit == 4:
                e.line(f"{held.name}[{at // 4}] = {held.from_bits(name)};")
            else:
                e.line(f"{held.name}[{at // 4}] |= (uint32_t){name} << {at % 4 * 8};")


def _store_run(e: Emitter, step: Access, held: Held, place: _Place, slot: int, run: int, unit: int) -> None:
    here = _slot_place(held, window_of(step), place, slot)
    run_bytes, byte = run * held.bits // 8, slot * held.bits // 8
    with e.block(f"if ({_inside(e, here)})" if here.tensor.space is Space.GLOBAL else ""):
        e.line(f"{_UNITS[unit]} *to = {_units(e, here, unit, held.dtype, constant=False)};")
        for number in range(run_bytes // unit):
            at = byte + number * unit
            words = [held.word(at // 4 + part) for part in range(max(unit // 4, 1))]
            text = f"make_{_UNITS[unit]}({', '.join(words)})" if unit > 4 else words[0]
            if unit < 4:
                text = f"({_UNITS[unit]})({words[0]} >> {at % 4 * 8})"
            e.line(f"to[{number}] = {text};")


def _load_codes(e: Emitter, step: Access, held: Held, place: _Place) -> None:
    """Element by element under the scalar rule."""
    for number in range(held.count):
        e.line(f"{held.name}[{number}] = 0;")
    for slot in range(held.slots):
        here = _slot_place(held, window_of(step), place, slot)
        word, start = divmod(slot * held.bits, 32)
        with e.block(f"if ({_inside(e, here)})" if here.tensor.space is Space.GLOBAL else ""):
            stream = f"(const uint8_t *){e.names[place.tensor.name]}"
            e.line(f"const uint32_t code = read_code({stream}, {_offset(e, here)}, {held.bits});")
            e.line(f"{held.name}[{word}] |= code << {start};")
            if start + held.bits > 32:
                e.line(f"{held.name}[{word + 1}] |= code >> {32 - start};")


def _ldmatrix_applies(step: ir.LoadShared) -> bool:
    tensor, window = registers_of(step), step.source
    if tensor.dtype.bits != 16 or not can_ldmatrix(tensor.registers, 16):
        return False
    per_warp = ldmatrix_part(tensor.registers, 16).local_size
    fits = per_warp in (1, 2) or per_warp % 4 == 0
    return fits and shared_run(window, window.dims[-1], 8) == 8


def _load_matrices(e: Emitter, step: ir.LoadShared, held: Held) -> None:
    """Each lane names a row of 16 bytes; rows of eight go to the lanes as the fragments want them."""
    outer = ldmatrix_part(held.layout, 16)
    together = min(outer.local_size, 4)
    scale = (*(1,) * (outer.rank - 2), 8, 8)
    for first in range(0, outer.local_size, together):
        matrix = f"({first} + thread % 32 / 8 % {together})"
        by_warp = tile_index(outer.spatial_digits, "(thread / 32)", outer.rank)
        by_matrix = tile_index(outer.local_digits, matrix, outer.rank)
        coordinates = [e.scalar(offset) for offset in step.source.offsets]
        for tile_dim, dim in enumerate(step.source.dims):
            terms = [f"({t}) * {scale[tile_dim]}" for t in (*by_warp[tile_dim], *by_matrix[tile_dim])]
            if tile_dim == outer.rank - 2:
                terms.append("thread % 8")
            coordinates[dim] = " + ".join([coordinates[dim], *terms])
        with e.block(""):
            place = _named(e, _Place(step.source.tensor, tuple(coordinates)))
            words = ", ".join(f"{held.name}[{first + i}]" for i in range(together))
            name = "load_matrix" if together == 1 else "load_matrices"
            e.line(f"{name}({words}, {e.names[place.tensor.name]} + {_offset(e, place)});")


def copy_async(e: Emitter, step: ir.CopyAsync) -> None:
    """Threads share the tile in units of up to 16 bytes; units of less than four bytes are copied at once."""
    bits = step.source.tensor.dtype.bits
    run = math.gcd(step.shape[-1], contiguous_elements(step.source, step.source.dims[-1]))
    run = math.gcd(run, shared_run(step.out, step.out.dims[-1], step.shape[-1]))
    unit = math.gcd(run * bits // 8, 16)
    per_unit = unit * 8 // bits
    units = row_major(*step.shape[:-1], step.shape[-1] // per_unit)
    total = math.prod(units.shape)
    head = f"for (int unit = thread; unit < {total}; unit += {e.program.threads})"
    e.line("#pragma unroll")
    with e.block(head):
        index = [
            f"unit / {stride} % {size}" if stride > 1 else f"unit % {size}"
            for size, stride in zip(units.shape, units.mode_strides, strict=True)
        ]
        index[-1] = f"({index[-1]}) * {per_unit}"
        names = []
        for text in index:
            names.append(e.fresh("i"))
            e.line(f"const int {names[-1]} = {text};")
        source = _Place(step.source.tensor, tuple(map(e.scalar, step.source.offsets)))
        target = _Place(step.out.tensor, tuple(map(e.scalar, step.out.offsets)))
        source, target = source.moved(step.source, names), target.moved(step.out, names)
        base = e.names[source.tensor.name]
        e.line(f"const bool inside = {_inside(e, source)};")
        to = f"{e.names[target.tensor.name]} + {_offset(e, target)}"
        from_ = f"{base} + (inside ? {_offset(e, source)} : 0)"
        if unit >= 4:
            e.line(f"copy_later<{unit}>({to}, {from_}, inside ? {unit} : 0);")
            return
        kind = _UNITS[unit]
        e.line(f"*({kind} *)({to}) = inside ? *(const {kind} *)({from_}) : ({kind})0;")


def lock(e: Emitter, step: ir.LockSemaphore) -> None:
    e.line(f"wait_for({_semaphore(e, step.at)}, {e.scalar(step.value)});")


def release(e: Emitter, step: ir.ReleaseSemaphore) -> None:
    e.line(f"release({_semaphore(e, step.at)}, {e.scalar(step.value)});")


def _semaphore(e: Emitter, at: Window) -> str:
    place = _Place(at.tensor, tuple(map(e.scalar, at.offsets)))
    return f"{e.names[at.tensor.name]} + {_offset(e, place)}"


def _writer(layout: RegisterLayout) -> str:
    """C condition: of the threads that hold copies, this one stores."""
    tests, weight = [], 1
    for digit in reversed(layout.spatial_digits):
        if digit.dim is None:
            tests.append(f"thread / {weight} % {digit.size} == 0")
        weight *= digit.size
    return " && ".join(tests)
