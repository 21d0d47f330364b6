"""Runs tile programs with NumPy, slot by slot: what every back end must agree with.

Registers are kept as codes in an array (threads, slots), so that a View is what it is on hardware: the same
bits, read otherwise. What a program has not written is filled with NaN or noise. An asynchronous copy
leaves noise behind until its group has been waited for and the threads have met, so that a missing wait
shows. Blocks run in any order and wait for one another's semaphores.
"""

import itertools
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Integer, Shaped, UInt8, UInt32

from shoestring.errors import ProgramError
from shoestring.kernels.tile import ir
from shoestring.kernels.tile.alignment import slots_of_operand
from shoestring.kernels.tile.expressions import Expr, evaluate
from shoestring.kernels.tile.ir import Body, Instruction, Program, Tensor, Window
from shoestring.kernels.tile.layout import RegisterLayout
from shoestring.kernels.tile.types import DataType, gather_codes, scatter_codes
from shoestring.numbers.packing import pack_bits, packed_bytes, unpack_bits

_NAN_CODES = {"f16": 0x7E00, "bf16": 0x7FC0, "f32": 0x7FC00000}
Registers = UInt32[np.ndarray, "threads slots"]
_UNARY: Mapping[str, Callable[[Any], Any]] = {
    "neg": np.negative,
    "abs": np.abs,
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "tanh": np.tanh,
}
_BINARY: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "mod": np.fmod,
    "max": np.maximum,
    "min": np.minimum,
}
_REDUCE: Mapping[str, Callable[..., Any]] = {"sum": np.sum, "max": np.max, "min": np.min}


def run(program: Program, arguments: Mapping[str, "int | np.ndarray"], *, seed: int | None = None) -> None:
    """Run all blocks of `program`; buffers among the arguments are changed in place.

    `arguments`: an int for each scalar, a contiguous array for each pointer. `seed`: order of the blocks and
    noise; None: row-major order. All layouts must be filled in.

    Raises: ProgramError for arguments that do not fit, accesses outside shared memory, copies that disagree,
    or blocks that wait for one another without end.
    """
    scalars, buffers = _bind(program, arguments)
    launch = _Launch(program, scalars, buffers, np.random.default_rng(seed))
    blocks = list(itertools.product(*(range(evaluate(extent, scalars)) for extent in program.grid)))
    if seed is not None:
        launch.noise.shuffle(blocks)
    waiting = [_Block(launch, tuple(block)).start() for block in blocks]
    while waiting:
        still = [block for block in waiting if next(block, "done") != "done"]
        if len(still) == len(waiting) and not launch.moved:
            raise ProgramError(
                f"{program.name}: {len(still)} blocks wait for semaphores that nobody releases"
            )
        waiting, launch.moved = still, False


def _bind(
    program: Program, arguments: Mapping[str, "int | np.ndarray"]
) -> tuple[dict[str, int], dict[str, UInt8[np.ndarray, "_"]]]:
    expected = {p.name for p in program.params}
    if expected != set(arguments):
        raise ProgramError(f"{program.name} takes {sorted(expected)}, not {sorted(arguments)}")
    scalars: dict[str, int] = {}
    buffers: dict[str, np.ndarray] = {}
    for scalar in program.scalars:
        value = arguments[scalar.name]
        if not isinstance(value, int) or value % scalar.divisible_by:
            raise ProgramError(
                f"{program.name}: {scalar.name}={value!r} must be an int divisible by {scalar.divisible_by}"
            )
        scalars[scalar.name] = value
    for pointer in program.pointers:
        array = arguments[pointer.name]
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
            raise ProgramError(f"{program.name}: {pointer.name} must be a contiguous array")
        buffers[pointer.name] = array.reshape(-1).view(np.uint8)
    return scalars, buffers


@dataclass
class _Launch:
    """What all blocks share. `moved`: whether a semaphore changed since the scheduler last looked."""

    program: Program
    scalars: dict[str, int]
    buffers: dict[str, np.ndarray]
    noise: np.random.Generator
    workspaces: dict[str, np.ndarray] = field(default_factory=dict)
    moved: bool = False

    def garbage(self, dtype: DataType, shape: tuple[int, ...]) -> UInt32[np.ndarray, "*shape"]:
        """What undefined memory holds: NaN where the type has it, else noise."""
        if dtype.is_float and not dtype.is_narrow:
            return np.full(shape, _NAN_CODES[dtype.name], np.uint32)
        return self.noise.integers(0, 1 << dtype.bits, shape, np.uint64).astype(np.uint32)


class _Exit(Exception):
    pass


class _Block:
    """One block: its scalars, registers, shared memory and copies on their way."""

    def __init__(self, launch: _Launch, place: tuple[int, ...]) -> None:
        self.launch = launch
        self.place = place
        self.scalars = dict(launch.scalars)
        self.globals: dict[str, np.ndarray] = {}
        self.registers: dict[str, np.ndarray] = {}
        self.shared: dict[str, np.ndarray] = {}
        self.copies: list[tuple[str, np.ndarray, np.ndarray]] = []
        self.groups: list[list[tuple[str, np.ndarray, np.ndarray]]] = []
        self.landed: list[tuple[str, np.ndarray, np.ndarray]] = []

    def start(self) -> Generator[str, None, None]:
        """Runs until done, yielding whenever it must wait for another block."""
        try:
            yield from self._body(self.launch.program.body)
        except _Exit:
            return

    def _body(self, body: Body) -> Generator[str, None, None]:
        for statement in body:
            if isinstance(statement, ir.For):
                for value in range(self.value(statement.extent)):
                    self.scalars[statement.variable.name] = value
                    yield from self._body(statement.body)
            elif isinstance(statement, ir.While):
                while self.value(statement.condition):
                    yield from self._body(statement.body)
            elif isinstance(statement, ir.If):
                chosen = statement.then if self.value(statement.condition) else statement.otherwise
                yield from self._body(chosen)
            elif isinstance(statement, ir.LockSemaphore):
                while self._semaphore(statement.at)[0] != self.value(statement.value):
                    yield "waits"
            else:
                assert isinstance(statement, Instruction)
                _STEPS[type(statement)](self, statement)

    def value(self, expr: Expr) -> int:
        return evaluate(expr, self.scalars)

    # Scalars and tensors

    def block_indices(self, step: ir.BlockIndices) -> None:
        self.scalars.update(zip((v.name for v in step.variables), self.place, strict=True))

    def set_scalar(self, step: ir.SetScalar) -> None:
        self.scalars[step.variable.name] = self.value(step.value)

    def view_global(self, step: ir.ViewGlobal) -> None:
        buffer = self.launch.buffers[step.pointer.name]
        shape = [self.value(n) for n in step.out.shape]
        strides = [self.value(s) for s in step.out.strides]
        last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if math.prod(shape) else -1
        needed = ((last + 1) * step.out.dtype.bits + 7) // 8
        if needed > len(buffer):
            raise ProgramError(f"{step}: a tensor of {needed} bytes in a buffer of {len(buffer)}")
        self.globals[step.out.name] = buffer

    def allocate_global(self, step: ir.AllocateGlobal) -> None:
        size = math.prod(self.value(n) for n in step.out.shape)
        new = np.zeros((size * step.out.dtype.bits + 7) // 8, np.uint8)
        self.globals[step.out.name] = self.launch.workspaces.setdefault(step.out.name, new)

    def allocate_shared(self, step: ir.AllocateShared) -> None:
        self.shared[step.out.name] = self.launch.garbage(step.out.dtype, (step.out.memory.size,))

    def free_shared(self, step: ir.FreeShared) -> None:
        del self.shared[step.source.name]

    def allocate_register(self, step: ir.AllocateRegister) -> None:
        layout = step.out.registers
        if step.init is None:
            tile = self.launch.garbage(step.out.dtype, step.out.extents)
            self.registers[step.out.name] = tile.reshape(-1)[layout.flat_table]
        else:
            self._put(step.out, np.full((layout.threads, layout.local_size), step.init, np.float32))

    # Memory

    def load_global(self, step: ir.LoadGlobal) -> None:
        elements, inside = self._global_elements(step.source, step.out.registers.index_table)
        codes = gather_codes(self.globals[step.source.tensor.name], elements, step.out.dtype.bits)
        self.registers[step.out.name] = np.where(inside, codes, np.uint32(0))

    def store_global(self, step: ir.StoreGlobal) -> None:
        layout = step.source.registers
        elements, inside = self._global_elements(step.out, layout.index_table)
        chosen = inside & layout.writers[:, None]
        scatter_codes(
            self.globals[step.out.tensor.name],
            elements[chosen],
            step.source.dtype.bits,
            self.registers[step.source.name][chosen],
        )

    def load_shared(self, step: ir.LoadShared) -> None:
        places = self._shared_places(step, step.source, step.out.registers.index_table)
        self.registers[step.out.name] = self.shared[step.source.tensor.name][places]

    def store_shared(self, step: ir.StoreShared) -> None:
        layout = step.source.registers
        places = self._shared_places(step, step.out, layout.index_table)
        self.shared[step.out.tensor.name][places[layout.writers]] = self.registers[step.source.name][
            layout.writers
        ]

    def copy_async(self, step: ir.CopyAsync) -> None:
        index = np.moveaxis(np.indices(step.shape), 0, -1)
        elements, inside = self._global_elements(step.source, index)
        codes = gather_codes(self.globals[step.source.tensor.name], elements, step.source.tensor.dtype.bits)
        places = self._shared_places(step, step.out, index)
        target = self.shared[step.out.tensor.name]
        target[places] = self.launch.garbage(step.out.tensor.dtype, places.shape)
        self.copies.append((step.out.tensor.name, places, np.where(inside, codes, np.uint32(0))))

    def commit_group(self, step: ir.CopyAsyncCommitGroup) -> None:
        self.groups.append(self.copies)
        self.copies = []

    def wait_group(self, step: ir.CopyAsyncWaitGroup) -> None:
        while len(self.groups) > step.pending:
            self.landed += self.groups.pop(0)

    def synchronize(self, step: ir.Synchronize) -> None:
        for name, places, codes in self.landed:
            if name in self.shared:
                self.shared[name][places] = codes
        self.landed = []

    def _coordinates(
        self, window: Window, index: Int[np.ndarray, "*places rank"]
    ) -> list[Int[np.ndarray, "*places"]]:
        coordinates = [np.full(index.shape[:-1], self.value(o), np.int64) for o in window.offsets]
        for tile_dim, dim in enumerate(window.dims):
            coordinates[dim] = coordinates[dim] + index[..., tile_dim]
        return coordinates

    def _global_elements(
        self, window: Window, index: Int[np.ndarray, "*places rank"]
    ) -> tuple[Int[np.ndarray, "*places"], Bool[np.ndarray, "*places"]]:
        """Element number of each place, 0 outside, and whether it is inside."""
        element = np.zeros(index.shape[:-1], np.int64)
        inside = np.ones(index.shape[:-1], bool)
        tensor = window.tensor
        for x, extent, stride in zip(
            self._coordinates(window, index), tensor.shape, tensor.strides, strict=True
        ):
            inside &= (x >= 0) & (x < self.value(extent))
            element += x * self.value(stride)
        return np.where(inside, element, 0), inside

    def _shared_places(
        self, step: Instruction, window: Window, index: Int[np.ndarray, "*places rank"]
    ) -> Int[np.ndarray, "*places"]:
        coordinates = self._coordinates(window, index)
        for dim, (x, extent) in enumerate(zip(coordinates, window.tensor.extents, strict=True)):
            if x.min() < 0 or x.max() >= extent:
                raise ProgramError(
                    f"{step}: reaches {x.min()} .. {x.max()} along dimension {dim} of {extent}"
                )
        return window.tensor.memory.offset_table[tuple(coordinates)]

    # Registers

    def view(self, step: ir.View) -> None:
        source = self.registers[step.source.name]
        streams = _bytes_of(source, step.source.dtype.bits)
        codes = _codes_of(streams, step.out.dtype.bits, step.out.registers.local_size)
        self.registers[step.out.name] = codes
        layout = step.out.registers
        tile = codes[layout.thread_table, layout.slot_table].reshape(-1)
        if not np.array_equal(tile[layout.flat_table], codes):
            raise ProgramError(f"{step}: copies disagree, from {step.source} to {step.out}")

    def cast(self, step: ir.Cast) -> None:
        self._put(step.out, self._get(step.source, step.out.registers))

    def assign(self, step: ir.Assign) -> None:
        slots = slots_of_operand(step.out.registers, step.source.registers)
        self.registers[step.out.name] = self.registers[step.source.name][:, list(slots)]

    def unary(self, step: ir.Unary) -> None:
        with np.errstate(all="ignore"):
            self._put(step.out, _UNARY[step.op](self._get(step.source, step.out.registers)))

    def elementwise(self, step: ir.Elementwise) -> None:
        layout = step.out.registers
        self._combine(step.out, step.op, self._get(step.a, layout), self._get(step.b, layout))

    def elementwise_scalar(self, step: ir.ElementwiseScalar) -> None:
        value = self.value(step.value) if isinstance(step.value, Expr) else step.value
        a = self._get(step.source, step.out.registers)
        self._combine(step.out, step.op, a, np.asarray(value, a.dtype))

    def dot(self, step: ir.Dot) -> None:
        a, b, c = (self._tile(tensor) for tensor in (step.a, step.b, step.c))
        with np.errstate(all="ignore"):
            self._put_tile(step.out, c + a @ b)

    def reduce(self, step: ir.Reduce) -> None:
        self._put_tile(step.out, _REDUCE[step.op](self._tile(step.source), axis=step.dim, keepdims=True))

    def transpose(self, step: ir.Transpose) -> None:
        self._put_tile(step.out, self._tile(step.source).transpose(step.dims))

    def reshape(self, step: ir.Squeeze | ir.Unsqueeze) -> None:
        self._put_tile(step.out, self._tile(step.source).reshape(step.out.extents))

    def _combine(
        self, out: Tensor, op: str, a: Shaped[np.ndarray, "..."], b: Shaped[np.ndarray, "..."]
    ) -> None:
        with np.errstate(all="ignore"):
            self._put(out, _BINARY[op](a, b))

    def _get(self, tensor: Tensor, needed: RegisterLayout) -> Shaped[np.ndarray, "threads slots"]:
        """Values as the slots of `needed` see them."""
        slots = slots_of_operand(needed, tensor.registers)
        return tensor.dtype.decode(self.registers[tensor.name][:, list(slots)])

    def _put(self, tensor: Tensor, values: Shaped[np.ndarray, "threads slots"]) -> None:
        self.registers[tensor.name] = tensor.dtype.encode(values)

    def _tile(self, tensor: Tensor) -> Shaped[np.ndarray, "..."]:
        """The tensor itself, from the writing threads."""
        layout = tensor.registers
        return tensor.dtype.decode(self.registers[tensor.name][layout.thread_table, layout.slot_table])

    def _put_tile(self, tensor: Tensor, tile: Shaped[np.ndarray, "..."]) -> None:
        self._put(tensor, np.ascontiguousarray(tile).reshape(-1)[tensor.registers.flat_table])

    # Between blocks

    def _semaphore(self, at: Window) -> Integer[np.ndarray, " one"]:
        element = sum(
            self.value(o) * self.value(s) for o, s in zip(at.offsets, at.tensor.strides, strict=True)
        )
        return self.globals[at.tensor.name].view(np.int32)[element : element + 1]

    def release_semaphore(self, step: ir.ReleaseSemaphore) -> None:
        self._semaphore(step.at)[0] = self.value(step.value)
        self.launch.moved = True

    def print(self, step: ir.Print) -> None:
        print(f"{step.caption or step.source.name} {list(self.place)}\n{self._tile(step.source)}")

    def exit(self, step: ir.Exit) -> None:
        raise _Exit


def _bytes_of(codes: Registers, bits: int) -> UInt8[np.ndarray, "threads bytes"]:
    """Each thread's slots as one little-endian bit string."""
    if bits == 32:
        return np.ascontiguousarray(codes).view(np.uint8)
    return pack_bits(codes.astype(np.int32), bits)


def _codes_of(streams: UInt8[np.ndarray, "threads bytes"], bits: int, count: int) -> Registers:
    if bits == 32:
        return np.ascontiguousarray(streams).view(np.uint32)
    return unpack_bits(streams[:, : packed_bytes(count, bits)], bits, count).astype(np.uint32)


_STEPS: Mapping[type[Instruction], Callable[[_Block, Any], None]] = {
    ir.BlockIndices: _Block.block_indices,
    ir.SetScalar: _Block.set_scalar,
    ir.ViewGlobal: _Block.view_global,
    ir.AllocateGlobal: _Block.allocate_global,
    ir.AllocateShared: _Block.allocate_shared,
    ir.FreeShared: _Block.free_shared,
    ir.AllocateRegister: _Block.allocate_register,
    ir.LoadGlobal: _Block.load_global,
    ir.StoreGlobal: _Block.store_global,
    ir.LoadShared: _Block.load_shared,
    ir.StoreShared: _Block.store_shared,
    ir.CopyAsync: _Block.copy_async,
    ir.CopyAsyncCommitGroup: _Block.commit_group,
    ir.CopyAsyncWaitGroup: _Block.wait_group,
    ir.Synchronize: _Block.synchronize,
    ir.View: _Block.view,
    ir.Cast: _Block.cast,
    ir.Dot: _Block.dot,
    ir.Unary: _Block.unary,
    ir.Elementwise: _Block.elementwise,
    ir.ElementwiseScalar: _Block.elementwise_scalar,
    ir.Reduce: _Block.reduce,
    ir.Transpose: _Block.transpose,
    ir.Squeeze: _Block.reshape,
    ir.Unsqueeze: _Block.reshape,
    ir.Assign: _Block.assign,
    ir.Print: _Block.print,
    ir.ReleaseSemaphore: _Block.release_semaphore,
    ir.Exit: _Block.exit,
}
