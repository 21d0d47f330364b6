"""What a tile program computes with: buffers, tensors in three memories, and windows into them."""

import enum
from dataclasses import dataclass

from shoestring.errors import ProgramError
from shoestring.kernels.tile.expressions import Const, Expr
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

    Raises: ProgramError for a wrong number of offsets, or dimensions that are not there or named twice.
    """

    tensor: Tensor
    offsets: tuple[Expr, ...]
    dims: tuple[int, ...]

    def __post_init__(self) -> None:
        rank = len(self.tensor.shape)
        if len(self.offsets) != rank:
            raise ProgramError(f"{len(self.offsets)} offsets into the {rank} dimensions of {self.tensor}")
        if len(set(self.dims)) != len(self.dims) or any(not 0 <= d < rank for d in self.dims):
            raise ProgramError(f"dims {self.dims} are not different dimensions of {self.tensor}")

    def __str__(self) -> str:
        return f"{self.tensor.name}[{', '.join(map(str, self.offsets))}]"
