"""The instructions of the tile machine.

Source: Tilus (2025), section 6.
"""

from dataclasses import dataclass, fields
from functools import cached_property

from shoestring.kernels.tile.expressions import Expr, Var
from shoestring.kernels.tile.tensor import Pointer, Tensor, Window


class Statement:
    """What a body is made of."""


@dataclass(frozen=True)
class Instruction(Statement):
    """One step of a block. Its operands are fields; `reads` and `writes` sort the tensors among them."""

    @cached_property
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

    @cached_property
    def writes(self) -> tuple[Tensor, ...]:
        return tuple(t for name, t in self.operands.items() if name == "out")

    @cached_property
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
            if isinstance(value, tuple):
                text = f"[{', '.join(map(str, value))}]"
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
