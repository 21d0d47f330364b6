"""Tile programs as immutable data: what every back end reads and nothing else.

A program runs once for each block of a grid. Its state is block-level: scalars, pointers, and tensors in
global, shared or register memory. Register tensors are spread over the block's threads by a register layout;
a layout may be left open (None) until inference fills it in. Loads outside a global tensor give 0, stores
outside are masked.

Source: Tilus (2025), section 6.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from shoestring.kernels.tile.expressions import Expr, Var
from shoestring.kernels.tile.instructions import (
    BINARY,
    UNARY,
    AllocateGlobal,
    AllocateRegister,
    AllocateShared,
    Assign,
    BlockIndices,
    Cast,
    CopyAsync,
    CopyAsyncCommitGroup,
    CopyAsyncWaitGroup,
    Dot,
    Elementwise,
    ElementwiseScalar,
    Exit,
    FreeShared,
    Instruction,
    LoadGlobal,
    LoadShared,
    LockSemaphore,
    Print,
    Reduce,
    ReleaseSemaphore,
    SetScalar,
    Squeeze,
    Statement,
    StoreGlobal,
    StoreShared,
    Synchronize,
    Transpose,
    Unary,
    Unsqueeze,
    View,
    ViewGlobal,
)
from shoestring.kernels.tile.tensor import Pointer, Space, Tensor, Window

__all__ = [
    "BINARY",
    "UNARY",
    "AllocateGlobal",
    "AllocateRegister",
    "AllocateShared",
    "Assign",
    "BlockIndices",
    "Body",
    "Cast",
    "CopyAsync",
    "CopyAsyncCommitGroup",
    "CopyAsyncWaitGroup",
    "Dot",
    "Elementwise",
    "ElementwiseScalar",
    "Exit",
    "For",
    "FreeShared",
    "If",
    "Instruction",
    "LoadGlobal",
    "LoadShared",
    "LockSemaphore",
    "Pointer",
    "Print",
    "Program",
    "Reduce",
    "ReleaseSemaphore",
    "SetScalar",
    "Space",
    "Squeeze",
    "Statement",
    "StoreGlobal",
    "StoreShared",
    "Synchronize",
    "Tensor",
    "Transpose",
    "Unary",
    "Unsqueeze",
    "View",
    "ViewGlobal",
    "While",
    "Window",
    "bodies_of",
    "instructions_of",
    "with_tensors",
]

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
