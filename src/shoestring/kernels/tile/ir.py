"""Tile programs as immutable data: what every back end reads and nothing else.

A program runs once for each block of a grid. Its state is block-level: scalars, pointers, and tensors in
global, shared or register memory. Register tensors are spread over the block's threads by a register layout;
a layout may be left open (None) until inference fills it in. Loads outside a global tensor give 0, stores
outside are masked.

Source: Tilus (2025), section 6.
"""

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from shoestring.kernels.tile.expressions import Const, Expr, Var
from shoestring.kernels.tile.layout import RegisterLayout
from shoestring.kernels.tile.memory_layout import SharedLayout
from shoestring.kernels.tile.types import DataType


class Space(enum.Enum):
    """Where a tensor lives."""

    GLOBAL = "global"
    SHARED = "shared"
    REGISTER = "register"


@dataclass(frozen=True)
class Pointer:
    """A parameter: the start of a buffer of `dtype` elements, aligned to 16 bytes."""

    name: str
    dtype: DataType


@dataclass(frozen=True)
class Tensor:
    """A tensor of a program, named once. Register and shared tensors have constant shapes.

    `layout`: a RegisterLayout in registers, a SharedLayout in shared memory; None while open. Global tensors
    have `strides` instead, in elements.
    """

    name: str
    dtype: DataType
    shape: tuple[Expr, ...]
    space: Space
    layout: RegisterLayout | SharedLayout | None = None
    strides: tuple[Expr, ...] = ()

    @property
    def extents(self) -> tuple[int, ...]:
        """The shape as integers. Raises: TypeError for a global tensor of unknown extent."""
        sizes = []
        for extent in self.shape:
            if not isinstance(extent, Const):
                raise TypeError(f"{self.name} has extent {extent}, known at launch only")
            sizes.append(extent.value)
        return tuple(sizes)

    @property
    def registers(self) -> RegisterLayout:
        """The layout of a register tensor. Raises: TypeError while it is open or elsewhere."""
        if not isinstance(self.layout, RegisterLayout):
            raise TypeError(f"{self.name} ({self.space.value}) has no register layout")
        return self.layout

    @property
    def memory(self) -> SharedLayout:
        """The layout of a shared tensor. Raises: TypeError while it is open or elsewhere."""
        if not isinstance(self.layout, SharedLayout):
            raise TypeError(f"{self.name} ({self.space.value}) has no shared layout")
        return self.layout

    def __str__(self) -> str:
        shape = ", ".join(map(str, self.shape))
        tail = f" {self.layout!r}" if isinstance(self.layout, RegisterLayout) else ""
        return f"{self.name}: {self.space.value} {self.dtype}[{shape}]{tail}"


@dataclass(frozen=True)
class Window:
    """The part of a tensor in memory that an instruction touches.

    `offsets`: where it begins, one for each dimension of the tensor. `dims`: the dimension of the tensor that
    each dimension of the moved tile runs along; the others stay at their offset.
    """

    tensor: Tensor
    offsets: tuple[Expr, ...]
    dims: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.tensor.name}[{', '.join(map(str, self.offsets))}]"


class Statement:
    """What a body is made of."""


@dataclass(frozen=True)
class Instruction(Statement):
    """One step of a block. Its operands are fields; `reads` and `writes` sort the tensors among them."""

    @property
    def operands(self) -> dict[str, Tensor]:
        """The tensors among the fields, by field name."""
        found = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Window):
                value = value.tensor
            if isinstance(value, Tensor):
                found[field.name] = value
        return found

    @property
    def writes(self) -> tuple[Tensor, ...]:
        return tuple(t for name, t in self.operands.items() if name == "out")

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return tuple(t for name, t in self.operands.items() if name != "out")

    @property
    def expressions(self) -> tuple[Expr, ...]:
        """The scalar expressions among the fields."""
        found: list[Expr] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Window):
                found.extend(value.offsets)
            elif isinstance(value, Expr) and field.name not in ("variable",):
                found.append(value)
        return tuple(found)

    def __str__(self) -> str:
        parts = []
        for field in fields(self):
            value = getattr(self, field.name)
            text = value.name if isinstance(value, Tensor | Pointer) else str(value)
            parts.append(f"{field.name}={text}")
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True)
class BlockIndices(Instruction):
    """Name the block's coordinates in the grid."""

    variables: tuple[Var, ...]


@dataclass(frozen=True)
class SetScalar(Instruction):
    """Give a scalar variable a value, its first or a new one."""

    variable: Var
    value: Expr


@dataclass(frozen=True)
class ViewGlobal(Instruction):
    """See the buffer of a pointer as a tensor."""

    out: Tensor
    pointer: Pointer


@dataclass(frozen=True)
class AllocateGlobal(Instruction):
    """A buffer of zeros that all blocks of a launch share."""

    out: Tensor


@dataclass(frozen=True)
class AllocateShared(Instruction):
    """On-chip memory of the block; its content is undefined."""

    out: Tensor


@dataclass(frozen=True)
class FreeShared(Instruction):
    """The last use of a shared tensor: its room may be given away."""

    source: Tensor


@dataclass(frozen=True)
class AllocateRegister(Instruction):
    """Registers, all set to `init`, or undefined where that is None."""

    out: Tensor
    init: float | None


@dataclass(frozen=True)
class LoadGlobal(Instruction):
    """Global memory to registers; 0 outside the tensor."""

    out: Tensor
    source: Window


@dataclass(frozen=True)
class StoreGlobal(Instruction):
    """Registers to global memory, except outside the tensor."""

    out: Window
    source: Tensor


@dataclass(frozen=True)
class LoadShared(Instruction):
    """Shared memory to registers."""

    out: Tensor
    source: Window


@dataclass(frozen=True)
class StoreShared(Instruction):
    """Registers to shared memory; other threads see it after a Synchronize."""

    out: Window
    source: Tensor


@dataclass(frozen=True)
class CopyAsync(Instruction):
    """Start a copy of a tile of `shape` from global to shared memory, 0 outside the global tensor.

    It has landed once its group was waited for, and is visible to all threads after a Synchronize.
    """

    out: Window
    source: Window
    shape: tuple[int, ...]


@dataclass(frozen=True)
class CopyAsyncCommitGroup(Instruction):
    """The copies started since the last commit form a group."""


@dataclass(frozen=True)
class CopyAsyncWaitGroup(Instruction):
    """Wait until at most `pending` groups are on their way."""

    pending: int


@dataclass(frozen=True)
class Synchronize(Instruction):
    """All threads of the block reach this point before any goes on."""


@dataclass(frozen=True)
class View(Instruction):
    """The same register bits as another type and layout, at no cost.

    Each thread's slots, joined in order as one bit string, are cut anew.
    """

    out: Tensor
    source: Tensor


@dataclass(frozen=True)
class Cast(Instruction):
    """The same values in another type, rounded to nearest, ties to even."""

    out: Tensor
    source: Tensor


@dataclass(frozen=True)
class Dot(Instruction):
    """out = c + a · b, accumulated in the type of c; `out` may be `c`."""

    out: Tensor
    a: Tensor
    b: Tensor
    c: Tensor


UNARY = ("neg", "abs", "exp", "exp2", "log", "sqrt", "rsqrt", "tanh")
BINARY = ("add", "sub", "mul", "div", "mod", "max", "min")


@dataclass(frozen=True)
class Unary(Instruction):
    """out = op(source), element by element. `op`: one of UNARY."""

    out: Tensor
    op: str
    source: Tensor


@dataclass(frozen=True)
class Elementwise(Instruction):
    """out = op(a, b), element by element; dimensions of size 1 broadcast. `op`: one of BINARY."""

    out: Tensor
    op: str
    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class ElementwiseScalar(Instruction):
    """out = op(source, value) with a constant or a scalar expression."""

    out: Tensor
    op: str
    source: Tensor
    value: Expr | float


@dataclass(frozen=True)
class Reduce(Instruction):
    """out = source reduced along `dim`, which stays with size 1. `op`: sum, max or min."""

    out: Tensor
    op: str
    source: Tensor
    dim: int


@dataclass(frozen=True)
class Transpose(Instruction):
    """Dimension i of `out` is dimension dims[i] of the source; no register moves."""

    out: Tensor
    source: Tensor
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Squeeze(Instruction):
    """Drop dimensions of size 1; no register moves."""

    out: Tensor
    source: Tensor
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Unsqueeze(Instruction):
    """New dimensions of size 1 at `dims` of the result; no register moves."""

    out: Tensor
    source: Tensor
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Assign(Instruction):
    """Registers to registers of the same shape and type."""

    out: Tensor
    source: Tensor


@dataclass(frozen=True)
class Print(Instruction):
    """Write a register tensor and a caption to the standard output, for a person who debugs."""

    source: Tensor
    caption: str


@dataclass(frozen=True)
class LockSemaphore(Instruction):
    """Wait until the i32 at `at` has the value `value`; what others stored before is visible then."""

    at: Window
    value: Expr


@dataclass(frozen=True)
class ReleaseSemaphore(Instruction):
    """Set the i32 at `at` to `value` once all that this block stored is visible to others."""

    at: Window
    value: Expr


@dataclass(frozen=True)
class Exit(Instruction):
    """The block is done."""


Body = tuple[Statement, ...]


@dataclass(frozen=True)
class For(Statement):
    """variable = 0, 1, … extent − 1."""

    variable: Var
    extent: Expr
    body: Body

    def __str__(self) -> str:
        return f"For({self.variable} < {self.extent})"


@dataclass(frozen=True)
class If(Statement):
    condition: Expr
    then: Body
    otherwise: Body = ()

    def __str__(self) -> str:
        return f"If({self.condition})"


@dataclass(frozen=True)
class While(Statement):
    condition: Expr
    body: Body

    def __str__(self) -> str:
        return f"While({self.condition})"


@dataclass(frozen=True)
class Program:
    """A kernel: `grid` gives the number of blocks along each axis from the scalar parameters."""

    name: str
    threads: int
    grid: tuple[Expr, ...]
    params: tuple[Var | Pointer, ...]
    body: Body

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return tuple(p for p in self.params if isinstance(p, Pointer))

    @property
    def scalars(self) -> tuple[Var, ...]:
        return tuple(p for p in self.params if isinstance(p, Var))

    def instructions(self) -> Iterator[Instruction]:
        """All instructions, in the order of the text."""
        return instructions_of(self.body)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, in order of appearance."""
        found: dict[str, Tensor] = {}
        for instruction in self.instructions():
            for tensor in (*instruction.writes, *instruction.reads):
                found.setdefault(tensor.name, tensor)
        return found

    def __str__(self) -> str:
        head = f"{self.name}<{', '.join(map(str, self.grid))}> of {self.threads} threads"
        return "\n".join([head, *_lines(self.body, "    ")])


def instructions_of(body: Body) -> Iterator[Instruction]:
    for statement in body:
        if isinstance(statement, Instruction):
            yield statement
        for part in bodies_of(statement):
            yield from instructions_of(part)


def bodies_of(statement: Statement) -> tuple[Body, ...]:
    """The bodies inside a statement."""
    if isinstance(statement, For | While):
        return (statement.body,)
    if isinstance(statement, If):
        return (statement.then, statement.otherwise)
    return ()


def with_tensors(program: Program, change: Callable[[Tensor], Tensor]) -> Program:
    """The program with every tensor replaced by `change` of it."""
    return replace(program, body=_changed(program.body, change))


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_changed(item, change) for item in value)
    if isinstance(value, Window | Statement):
        new = {f.name: _changed(getattr(value, f.name), change) for f in fields(value)}  # type: ignore[arg-type]
        return replace(value, **new)  # type: ignore[type-var]
    return value


def _lines(body: Body, indent: str) -> Iterator[str]:
    for statement in body:
        yield f"{indent}{statement}"
        inner = bodies_of(statement)
        for number, part in enumerate(inner):
            if number and part:
                yield f"{indent}Else"
            yield from _lines(part, indent + "    ")
