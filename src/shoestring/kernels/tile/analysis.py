"""What is known about scalars before a program runs, and how wide a memory access may be because of it.

Source: Tilus (2025), section 8 (automatic vectorisation).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shoestring.kernels.tile.expressions import Binary, Const, Expr, Var
from shoestring.kernels.tile.ir import LoadGlobal, LoadShared, Space, StoreGlobal, StoreShared, Tensor, Window
from shoestring.kernels.tile.layout import RegisterLayout

Access = LoadGlobal | StoreGlobal | LoadShared | StoreShared
Range = tuple[int, int]


def divisor_of(expr: Expr) -> int:
    """The largest number known to divide an expression; 0 for the constant 0, which all numbers divide."""
    if isinstance(expr, Const):
        return abs(expr.value)
    if isinstance(expr, Var):
        return expr.divisible_by
    assert isinstance(expr, Binary)
    left, right = divisor_of(expr.left), divisor_of(expr.right)
    if expr.op in ("+", "-", "min", "max", "%"):
        return math.gcd(left, right)
    if expr.op == "*":
        return left * right
    if expr.op == "//" and isinstance(expr.right, Const) and left % expr.right.value == 0:
        return left // expr.right.value
    return 1


def range_of(expr: Expr, ranges: Mapping[str, Range]) -> Range | None:
    """Least and largest value of an expression, given those of variables; None where it is not known."""
    if isinstance(expr, Const):
        return expr.value, expr.value
    if isinstance(expr, Var):
        return ranges.get(expr.name)
    assert isinstance(expr, Binary)
    left, right = range_of(expr.left, ranges), range_of(expr.right, ranges)
    if expr.op == "%" and right is not None and right[0] == right[1] and right[0] > 0:
        inside = left is not None and left[1] < right[0]
        return left if inside else (0, right[0] - 1)
    if left is None or right is None:
        return None
    if expr.op == "+":
        return left[0] + right[0], left[1] + right[1]
    if expr.op == "-":
        return left[0] - right[1], left[1] - right[0]
    if expr.op == "*":
        corners = [a * b for a in left for b in right]
        return min(corners), max(corners)
    if expr.op == "//" and left[0] >= 0 and right[0] > 0:
        return left[0] // right[1], left[1] // right[0]
    if expr.op == "min":
        return min(left[0], right[0]), min(left[1], right[1])
    if expr.op == "max":
        return max(left[0], right[0]), max(left[1], right[1])
    return None


@dataclass(frozen=True)
class Vector:
    """How a load or store may be cut: runs of `elements` slots, moved in units of `unit_bytes` bytes.

    `unit_bytes=0`: the elements do not fill bytes; they are moved one by one under the scalar rule.
    """

    elements: int
    unit_bytes: int


def window_of(access: Access) -> Window:
    """The window in memory of a load or store."""
    return access.source if isinstance(access, LoadGlobal | LoadShared) else access.out


def registers_of(access: Access) -> Tensor:
    """The register tensor of a load or store."""
    return access.out if isinstance(access, LoadGlobal | LoadShared) else access.source


def vector_of(access: Access) -> Vector:
    """The widest runs of consecutive slots that are consecutive in memory, aligned, and masked as one."""
    tensor = registers_of(access)
    count = run_of(window_of(access), tensor.registers)
    bits = count * tensor.dtype.bits
    if bits % 8:
        return Vector(1, 0)
    return Vector(count, math.gcd(bits // 8, 16))


def run_of(window: Window, layout: RegisterLayout) -> int:
    """Slots, a divisor of the local size, of which each aligned run is a run in memory.

    gcd of: slots that count along the contiguous dimension; what divides the offset there; what divides all
    other strides; what divides the extent, beyond which elements are masked.
    """
    last = layout.local_digits[-1] if layout.local_digits else None
    if last is None or last.dim is None or last.stride != 1:
        return 1
    along = window.dims[last.dim]
    if window.tensor.space is Space.SHARED:
        return shared_run(window, along, last.size)
    run = math.gcd(last.size, contiguous_elements(window, along))
    return run


def contiguous_elements(window: Window, along: int) -> int:
    """How many elements from the window's start on, and from every multiple of as many, are contiguous and
    masked as one along dimension `along` of a global tensor; 1 where its stride is not 1."""
    tensor = window.tensor
    if tensor.strides[along] != Const(1):
        return 1
    run = math.gcd(divisor_of(window.offsets[along]), divisor_of(tensor.shape[along]))
    for dim, stride in enumerate(tensor.strides):
        if dim == along:
            continue
        step = divisor_of(stride)
        if dim not in window.dims:
            step *= divisor_of(window.offsets[dim])
        run = math.gcd(run, step)
    return run


def shared_run(window: Window, along: int, slots: int) -> int:
    """The same for shared memory: unit stride along the last mode, everything else a multiple of the run."""
    memory = window.tensor.memory
    sizes, strides = memory.mode_shape, memory.mode_strides
    modes = [m for m, home in enumerate(_dims_of_modes(memory.shape, sizes)) if home == along]
    if not modes or strides[modes[-1]] != 1:
        return 1
    run = math.gcd(slots, sizes[modes[-1]])
    run = math.gcd(run, divisor_of(window.offsets[along]))
    for mode, stride in enumerate(strides):
        if mode != modes[-1]:
            run = math.gcd(run, stride)
    if memory.swizzle is not None:
        changed = memory.swizzle.mask >> memory.swizzle.shift
        run = math.gcd(run, changed & -changed)
    return run


def _dims_of_modes(shape: tuple[int, ...], mode_shape: tuple[int, ...]) -> list[int]:
    dims, left = [], list(shape)
    dim = 0
    for size in mode_shape:
        while dim < len(left) - 1 and left[dim] == 1 and size > 1:
            dim += 1
        dims.append(dim)
        left[dim] //= size
    return dims


def naive_run_of(
    window: Window, layout: RegisterLayout, values: Mapping[str, int], extents: tuple[int, ...]
) -> int:
    """The widest run by looking at every element of one concrete access: what `run_of` must divide.

    `extents`: the shape of the tensor at launch.
    """
    from shoestring.kernels.tile.expressions import evaluate

    tensor = window.tensor
    coordinates = [np.full((layout.threads, layout.local_size), evaluate(o, values)) for o in window.offsets]
    for tile_dim, dim in enumerate(window.dims):
        coordinates[dim] = coordinates[dim] + layout.index_table[:, :, tile_dim]
    inside = np.ones((layout.threads, layout.local_size), bool)
    for x, extent in zip(coordinates, extents, strict=True):
        inside &= (x >= 0) & (x < extent)
    if tensor.space is Space.SHARED:
        place = tensor.memory.offset_table[tuple(coordinates)]
    else:
        steps = [evaluate(s, values) for s in tensor.strides]
        place = sum(x * s for x, s in zip(coordinates, steps, strict=True))
    for run in range(layout.local_size, 1, -1):
        if layout.local_size % run:
            continue
        runs, masks = place.reshape(layout.threads, -1, run), inside.reshape(layout.threads, -1, run)
        contiguous = (runs - runs[..., :1] == np.arange(run)).all(-1) | ~masks.any(-1)
        aligned = (runs[..., 0] % run == 0) | ~masks.any(-1)
        if (contiguous & aligned & (masks.all(-1) | ~masks.any(-1))).all():
            return run
    return 1
