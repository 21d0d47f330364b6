"""Layouts of tensors in memory: where an element lies, counted in elements from the tensor's start.

Source: Tilus (2025), section 4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int

from shoestring.errors import LayoutError
from shoestring.kernels.tile.digits import homes_of_modes


@dataclass(frozen=True)
class Swizzle:
    """offset -> offset ^ ((offset & mask) >> shift): spreads the rows of a tile over the memory banks.

    The bits that are read must lie above those that are changed, which makes the map a bijection (its own
    inverse).

    Raises: LayoutError for a shift that moves bits onto those read, or negative values.
    """

    mask: int
    shift: int

    def __post_init__(self) -> None:
        if self.mask < 0 or self.shift < 1 or self.mask & (self.mask >> self.shift):
            raise LayoutError(
                f"swizzle mask {self.mask:#x} >> {self.shift} overlaps the bits that it reads; the mask must "
                "lie above the bits that change"
            )

    def __call__(self, offset: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        return offset ^ ((offset & self.mask) >> self.shift)


@dataclass(frozen=True)
class SharedLayout:
    """Where the elements of a tensor in on-chip memory lie: modes with strides, then perhaps a swizzle.

    `mode_shape`: sizes of the modes, dimension after dimension, slowest first. `mode_strides`: in elements.

    Raises: LayoutError where the modes do not multiply to the shape, or two elements share a place.
    """

    shape: tuple[int, ...]
    mode_shape: tuple[int, ...]
    mode_strides: tuple[int, ...]
    swizzle: Swizzle | None = None

    def __post_init__(self) -> None:
        if len(self.mode_shape) != len(self.mode_strides):
            raise LayoutError(f"{len(self.mode_shape)} modes but {len(self.mode_strides)} strides")
        homes_of_modes(self.shape, self.mode_shape)
        if not self._is_nested and len(np.unique(self.offset_table)) != math.prod(self.shape):
            raise LayoutError(f"{self}: two elements share a place")
        if min(self.mode_strides, default=0) < 0:
            raise LayoutError(f"{self}: an element lies before the start")

    @property
    def size(self) -> int:
        """Elements from the first place to the last one used."""
        if self.swizzle is not None:
            return int(self.offset_table.max()) + 1
        return 1 + sum((n - 1) * s for n, s in zip(self.mode_shape, self.mode_strides, strict=True))

    @property
    def _is_nested(self) -> bool:
        """Whether every mode steps over all that the faster ones reach: then no two elements can meet."""
        reach = 0
        for stride, size in sorted(zip(self.mode_strides, self.mode_shape, strict=True)):
            if stride <= reach and size > 1:
                return False
            reach += (size - 1) * stride
        return True

    def offset_of(self, index: Sequence[int]) -> int:
        return int(self.offset_table[tuple(index)])

    @cached_property
    def offset_table(self) -> Int[np.ndarray, "*shape"]:
        """Offset of every element."""
        offsets = np.zeros(self.mode_shape, np.int64)
        for axis, (size, stride) in enumerate(zip(self.mode_shape, self.mode_strides, strict=True)):
            along = [1] * len(self.mode_shape)
            along[axis] = size
            offsets = offsets + (np.arange(size) * stride).reshape(along)
        offsets = offsets.reshape(self.shape)
        return offsets if self.swizzle is None else self.swizzle(offsets)


def row_major(*shape: int) -> SharedLayout:
    """The last dimension contiguous."""
    return SharedLayout(shape, shape, tuple(math.prod(shape[d + 1 :]) for d in range(len(shape))))


def column_major(*shape: int) -> SharedLayout:
    """The first dimension contiguous."""
    return SharedLayout(shape, shape, tuple(math.prod(shape[:d]) for d in range(len(shape))))


def swizzled_row_major(*shape: int, bits: int) -> SharedLayout:
    """Row-major with 16-byte runs exchanged inside a row by row number, so that a column read of eight rows
    meets no bank twice; plain where a row is shorter than two runs or no power of two.

    `bits`: width of an element.
    """
    run = 128 // bits
    runs_per_row = shape[-1] // run if shape[-1] % run == 0 else 0
    plain = row_major(*shape)
    if runs_per_row < 2 or shape[-1] & (shape[-1] - 1) or bits not in (8, 16, 32):
        return plain
    exchanged = min(runs_per_row, 8)
    # Rows shorter than 128 bytes share a bank line: then the line number, not the row number, is used.
    line = max(shape[-1], 8 * run)
    shift = int(math.log2(line // run))
    mask = (exchanged - 1) * line
    return SharedLayout(plain.shape, plain.mode_shape, plain.mode_strides, Swizzle(mask, shift))
