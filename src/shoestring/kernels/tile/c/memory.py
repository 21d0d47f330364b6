"""Loads, stores and copies: full vectors where lanes are neighbours in memory, masked at the edge of a
tensor, element by element elsewhere."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shoestring.kernels.tile import ir
from shoestring.kernels.tile.c.emitter import Emitter
from shoestring.kernels.tile.c.registers import Held
from shoestring.kernels.tile.c.scalars import substitute
from shoestring.kernels.tile.c.windows import (
    Place,
    constant_element,
    coordinates_of,
    element,
    inside,
    strides_of,
    vector_dim,
    whole,
)
from shoestring.kernels.tile.expressions import Const, variables_of
from shoestring.kernels.tile.ir import Instruction, Space, Window
from shoestring.kernels.tile.types import DataType


def c_element(dtype: DataType) -> str:
    """The C type of an element in memory; narrow ones are a stream of bytes."""
    if dtype.bits == 32:
        return "float" if dtype.is_float else "int32_t"
    return "uint16_t" if dtype.bits == 16 else "uint8_t"


def view_global(e: Emitter, step: ir.ViewGlobal) -> None:
    kind = c_element(step.out.dtype)
    e.line(f"{kind} *const {e.names[step.out.name]} = {e.names[step.pointer.name]};")


def allocate_shared(e: Emitter, step: ir.AllocateShared) -> None:
    kind, offset = c_element(step.out.dtype), e.prepared.shared.offsets[step.out.name]
    e.line(f"{kind} *const {e.names[step.out.name]} = ({kind} *)(shared + {offset});")


def load(e: Emitter, step: ir.LoadGlobal | ir.LoadShared) -> None:
    held = e.register(step.out)
    with e.block(""):
        place = _open(e, step, step.source, step.out.extents)
        along = vector_dim(held, step.source)
        if along is not None:
            _load_vectors(e, held, place, along)
        elif e.is_read_in_place(step):
            _point_at(e, held, place)
        elif held.uniform and held.bits == 32 and strides_of(place.tensor) is not None:
            with e.block(f"if ({whole(e, place, held.layout.shape)})"):
                _load_runs(e, held, place)
            with e.block("else"):
                _load_each(e, held, place, held.name)
        else:
            _load_each(e, held, place, held.name)


def store(e: Emitter, step: ir.StoreGlobal | ir.StoreShared) -> None:
    held = e.register(step.source)
    with e.block(""):
        place = _open(e, step, step.out, step.source.extents)
        along = vector_dim(held, step.out)
        if along is not None:
            _store_vectors(e, held, place, along)
        elif held.uniform and held.bits == 32 and strides_of(place.tensor) is not None:
            with e.block(f"if ({whole(e, place, held.layout.shape)})"):
                _store_scalars(e, held, place)
            with e.block("else"):
                _store_each(e, held, place)
        else:
            _store_each(e, held, place)


def copy_async(e: Emitter, step: ir.CopyAsync) -> None:
    """At once, row by row: nobody may look before it was waited for."""
    with e.block(""):
        source = _open(e, step, step.source, step.shape)
        target = _open(e, step, step.out, step.shape)
        names = [e.fresh("i") for _ in step.shape]
        for name, count in zip(names[:-1], step.shape[:-1], strict=True):
            e.line(f"for (int {name} = 0; {name} < {count}; {name}++)")
        start, row = [*names[:-1], "0"], step.shape[-1]
        with e.block("" if len(names) == 1 else "    "):
            first, last = (_moved(source, [*names[:-1], end]) for end in ("0", str(row - 1)))
            bits, size = step.source.tensor.dtype.bits, step.source.tensor.dtype.bits // 8
            if _last_stride_is_one(source) and _last_stride_is_one(target):
                from_ = f"{source.base} + {element(e, source.tensor, first)}"
                to = f"{target.base} + {element(e, target.tensor, _moved(target, start))}"
                both = f"{inside(e, source, first)} && {inside(e, source, last)}"
                e.line(f"if ({both}) memcpy({to}, {from_}, {row * size});")
                e.line("else")
            with e.block(f"for (int {names[-1]} = 0; {names[-1]} < {row}; {names[-1]}++)"):
                here = _moved(source, names)
                code = f"read_code((const uint8_t *){source.base}, {element(e, source.tensor, here)}, {bits})"
                e.line(f"const uint32_t code = {inside(e, source, here)} ? {code} : 0;")
                to = element(e, target.tensor, _moved(target, names))
                e.line(f"write_code((uint8_t *){target.base}, {to}, {bits}, code);")


def lock(e: Emitter, step: ir.LockSemaphore) -> None:
    with e.block(""):
        at = _semaphore(e, step, step.at)
        code = e.failure(step, "waited half a minute for a semaphore that nobody releases")
        e.line(f"if (wait_for({at}, {e.scalar(step.value)})) return {code};")


def release(e: Emitter, step: ir.ReleaseSemaphore) -> None:
    with e.block(""):
        at = _semaphore(e, step, step.at)
        e.line(f"__atomic_store_n({at}, (int32_t)({e.scalar(step.value)}), __ATOMIC_RELEASE);")


def _semaphore(e: Emitter, step: Instruction, at: Window) -> str:
    place = _open(e, step, at, ())
    code = e.failure(step, "lies outside the semaphores")
    e.line(f"if (!({inside(e, place, place.offsets)})) return {code};")
    return f"{place.base} + {element(e, place.tensor, place.offsets)}"


def _open(e: Emitter, step: Instruction, window: Window, shape: Sequence[int]) -> Place:
    """Name the offsets of a window; a tile may not leave shared memory."""
    offsets = []
    for offset in window.offsets:
        name = e.fresh("at")
        e.line(f"const int64_t {name} = {e.scalar(offset)};")
        offsets.append(name)
    place = Place(window, e.names[window.tensor.name], tuple(offsets))
    if window.tensor.space is Space.SHARED and any(not isinstance(o, Const) for o in window.offsets):
        code = e.failure(step, f"leaves the shared tensor {window.tensor.name}")
        e.line(f"if (!({whole(e, place, shape)})) return {code};")
    return place


def _pointer(e: Emitter, place: Place, name: str, *, constant: bool) -> None:
    kind = c_element(place.tensor.dtype)
    start = element(e, place.tensor, place.offsets)
    e.line(f"{'const ' if constant else ''}{kind} *{name} = {place.base} + {start};")


def _starts(e: Emitter, held: Held, place: Place) -> list[tuple[int, int, str]]:
    """(group, register, element of its first lane relative to the window's start)."""
    parts = 32 // held.bits
    return [
        (group, number, constant_element(e, place, held.indices[group, 0, number * parts]))
        for group in range(held.groups)
        for number in range(held.count)
    ]


def _load_vectors(e: Emitter, held: Held, place: Place, along: int) -> None:
    kind = held.c_type
    starts = _starts(e, held, place)
    _pointer(e, place, "from", constant=True)
    _announce(e, held, place, starts)
    if place.tensor.space is Space.SHARED:
        for group, number, start in starts:
            e.line(f"{held.register(group, number)} = {kind}_load(from + {start});")
        return
    with e.block(f"if ({whole(e, place, held.layout.shape)})"):
        for group, number, start in starts:
            e.line(f"{held.register(group, number)} = {kind}_load(from + {start});")
    with e.block("else"):
        if held.bits == 32:
            for group, number, start in starts:
                mask = _mask(e, held, place, along, group, number)
                e.line(f"{held.register(group, number)} = {kind}_load_masked(from + {start}, {mask});")
            return
        edge = e.fresh("edge")  # filled in memory, so that the registers themselves need none
        e.line(f"{kind} {edge}[{len(starts)}];")
        _load_each(e, held, place, edge)
        for number in range(len(starts)):
            e.line(f"{held.name}[{number}] = {edge}[{number}];")


def _announce(e: Emitter, held: Held, place: Place, starts: list[tuple[int, int, str]]) -> None:
    """Prefetch what the loop around it will load some turns later."""
    if place.tensor.space is not Space.GLOBAL:
        return
    for turns, locality in e.announcements():
        offsets = place.window.offsets
        moving = [dim for dim, o in enumerate(offsets) if e.loops[-1] in variables_of(o)]
        if not moving:
            return
        later = []
        for offset in offsets:
            later.append(e.fresh("later"))
            e.line(f"int64_t {later[-1]} = {e.scalar(substitute(offset, e.loops[-1], turns))};")
        _carry(e, place, held.layout.shape, moving[0], later)
        ahead, kind = e.fresh("ahead"), c_element(place.tensor.dtype)
        e.line(f"const {kind} *{ahead} = {place.base} + {element(e, place.tensor, later)};")
        for number, (_, _, start) in enumerate(starts):
            if number * held.lanes * 4 % 64 == 0:
                e.line(f"__builtin_prefetch({ahead} + {start}, 0, {locality});")


def _carry(e: Emitter, place: Place, shape: Sequence[int], dim: int, later: Sequence[str]) -> None:
    """Past the end of the moving dimension the next block begins, as a rule beside this one: along the
    dimension before, or along the last where the first one moves."""
    window = place.window
    beside = dim - 1 if dim else len(later) - 1
    if beside == dim or beside not in window.dims:
        return
    extent, step = e.scalar(place.tensor.shape[dim]), shape[window.dims.index(beside)]
    with e.block(f"if ({later[dim]} >= {extent})"):
        e.line(f"{later[dim]} -= {extent};")
        e.line(f"{later[beside]} += {step};")


def _mask(e: Emitter, held: Held, place: Place, along: int, group: int, number: int) -> str:
    """The lanes of a register that lie inside the tensor."""
    index = held.indices[group, 0, number]
    lane_dim = place.window.dims[along]
    here = list(place.offsets)
    for tile_dim, dim in enumerate(place.window.dims):
        here[dim] = f"{here[dim]} + {int(index[tile_dim])}"
    others = [
        f"{here[dim]} >= 0 && {here[dim]} < {e.scalar(extent)}"
        for dim, extent in enumerate(place.tensor.shape)
        if dim != lane_dim
    ]
    extent = e.scalar(place.tensor.shape[lane_dim])
    low, high = f"clamped(-({here[lane_dim]}), LANES)", f"clamped({extent} - ({here[lane_dim]}), LANES)"
    if others:
        high = f"{' && '.join(others)} ? {high} : 0"
    return f"vm_between({low}, {high})"


def _load_runs(e: Emitter, held: Held, place: Place) -> None:
    """Scalars of a tile that is the same in all lanes: runs of neighbours are copied at once."""
    _pointer(e, place, "from", constant=True)
    for group in range(held.groups):
        slot = 0
        while slot < held.slots:
            length = _run_at(held, place, group, slot)
            start = constant_element(e, place, held.indices[group, 0, slot])
            if length == 1:
                e.line(f"{held.register(group, slot)} = from[{start}];")
            else:
                e.line(f"memcpy(&{held.register(group, slot)}, from + {start}, {4 * length});")
            slot += length


def _point_at(e: Emitter, held: Held, place: Place) -> None:
    """Scalars that stay in memory: a pointer to them, or to a copy with zeros where the tensor ends."""
    strides = strides_of(place.tensor)
    assert strides is not None
    along = [strides[dim] for dim in place.window.dims]
    with e.block(f"if ({whole(e, place, held.layout.shape)})"):
        e.line(f"{held.name} = {place.base} + {element(e, place.tensor, place.offsets)};")
        for dim, stride in enumerate(along):
            e.line(f"{held.name}_step{dim} = {e.scalar(stride)};")
    with e.block("else"):
        _load_each(e, held, place, f"{held.name}_edge")
        e.line(f"{held.name} = {held.name}_edge;")
        for dim in range(len(along)):
            e.line(f"{held.name}_step{dim} = {math.prod(held.layout.shape[dim + 1 :])};")


def _run_at(held: Held, place: Place, group: int, slot: int) -> int:
    """How many slots from `slot` on are neighbours in memory."""
    strides = strides_of(place.tensor) or ()
    steps = held.indices[group, 0, slot:] - held.indices[group, 0, slot]
    contiguous = [i for i, dim in enumerate(place.window.dims) if strides[dim] == Const(1)]
    if not contiguous:
        return 1
    expected = np.zeros_like(steps)
    expected[:, contiguous[0]] = np.arange(len(steps))
    broken = (steps != expected).any(axis=1)
    return int(broken.argmax()) if broken.any() else len(steps)


def _load_each(e: Emitter, held: Held, place: Place, into: str) -> None:
    """Element by element, 0 outside."""
    bits = held.bits
    e.line(f"memset({into}, 0, sizeof {into});")
    with e.block(_thread_loop(held)), e.block(f"for (int slot = 0; slot < {held.slots}; slot++)"):
        here = _name_coordinates(e, held, place)
        code = f"read_code((const uint8_t *){place.base}, {element(e, place.tensor, here)}, {bits})"
        e.line(f"const uint32_t code = {inside(e, place, here)} ? {code} : 0;")
        words, step = _lane_words(replace(held, name=into))
        e.line(f"put_field({words}, {step}, slot, {bits}, code);")


def _store_vectors(e: Emitter, held: Held, place: Place, along: int) -> None:
    kind = held.c_type
    writes = held.layout.writers.reshape(held.groups, held.lanes)[:, 0]
    starts = [item for item in _starts(e, held, place) if writes[item[0]]]
    _pointer(e, place, "to", constant=False)
    with e.block(f"if ({whole(e, place, held.layout.shape)})"):
        for group, number, start in starts:
            e.line(f"{kind}_store(to + {start}, {held.register(group, number)});")
    with e.block("else"):
        if held.bits != 32:
            _store_each(e, held, place)
            return
        for group, number, start in starts:
            mask = _mask(e, held, place, along, group, number)
            e.line(f"{kind}_store_masked(to + {start}, {mask}, {held.register(group, number)});")


def _store_scalars(e: Emitter, held: Held, place: Place) -> None:
    _pointer(e, place, "to", constant=False)
    for group in range(held.groups):
        if not held.layout.writers[group * held.lanes]:
            continue
        for slot in range(held.slots):
            start = constant_element(e, place, held.indices[group, 0, slot])
            e.line(f"to[{start}] = {held.register(group, slot)};")


def _store_each(e: Emitter, held: Held, place: Place) -> None:
    """Element by element, by the thread that writes it, and only inside."""
    copy = e.fresh("each")  # so that the registers themselves need no memory
    total = held.groups * held.count
    e.line(f"{held.c_type} {copy}[{total}];")
    for number in range(total):
        e.line(f"{copy}[{number}] = {held.register(0, number)};")
    with e.block(_thread_loop(held)):
        writer = _writer(held)
        if writer:
            e.line(f"if (!({writer})) continue;")
        with e.block(f"for (int slot = 0; slot < {held.slots}; slot++)"):
            here = _name_coordinates(e, held, place)
            words, step = _lane_words(replace(held, name=copy))
            code = f"get_field({words}, {step}, slot, {held.bits})"
            to = f"(uint8_t *){place.base}, {element(e, place.tensor, here)}"
            e.line(f"if ({inside(e, place, here)}) write_code({to}, {held.bits}, {code});")


def _thread_loop(held: Held) -> str:
    step = "thread += LANES" if held.uniform else "thread++"
    return f"for (int thread = 0; thread < {held.layout.threads}; {step})"


def _writer(held: Held) -> str:
    """C condition: this thread has replica digits of 0."""
    tests, weight = [], 1
    for digit in reversed(held.layout.spatial_digits):
        if digit.dim is None:
            tests.append(f"thread / {weight} % {digit.size} == 0")
        weight *= digit.size
    return " && ".join(tests)


def _name_coordinates(e: Emitter, held: Held, place: Place) -> list[str]:
    names = []
    for text in coordinates_of(place, held.layout, "thread", "slot"):
        names.append(e.fresh("c"))
        e.line(f"const int64_t {names[-1]} = {text};")
    return names


def _lane_words(held: Held) -> tuple[str, str]:
    """Pointer to a thread's first word, and the words between one and the next."""
    if held.uniform:
        return f"(uint32_t *){held.name} + thread / LANES * {held.count}", "1"
    return f"(uint32_t *){held.name} + thread / LANES * {held.count * held.lanes} + thread % LANES", "LANES"


def _moved(place: Place, names: Sequence[str]) -> list[str]:
    coordinates = list(place.offsets)
    for name, dim in zip(names, place.window.dims, strict=True):
        coordinates[dim] = f"({coordinates[dim]} + {name})"
    return coordinates


def _last_stride_is_one(place: Place) -> bool:
    strides = strides_of(place.tensor)
    return bool(strides and place.window.dims and strides[place.window.dims[-1]] == Const(1))
