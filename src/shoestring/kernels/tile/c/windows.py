"""Where the elements of a load or store lie in memory, and how many of them move as one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from shoestring.kernels.tile.c.emitter import Emitter
from shoestring.kernels.tile.c.registers import Held
from shoestring.kernels.tile.digits import Digit, homes_of_modes
from shoestring.kernels.tile.expressions import Const, Expr
from shoestring.kernels.tile.ir import Space, Tensor, Window
from shoestring.kernels.tile.layout import RegisterLayout
from shoestring.kernels.tile.memory_layout import SharedLayout


def is_plain(memory: SharedLayout) -> bool:
    """Whether a shared tensor has one stride for each dimension."""
    return memory.swizzle is None and memory.mode_shape == memory.shape


@dataclass(frozen=True)
class Place:
    """A window in C: `base` is a pointer, `offsets` are names of C variables, one for each dimension."""

    window: Window
    base: str
    offsets: tuple[str, ...]

    @property
    def tensor(self) -> Tensor:
        return self.window.tensor


def strides_of(tensor: Tensor) -> tuple[Expr, ...] | None:
    """Elements between neighbours along each dimension; None for shared memory that is laid out otherwise."""
    if tensor.space is Space.GLOBAL:
        return tensor.strides
    if is_plain(tensor.memory):
        return tuple(Const(stride) for stride in tensor.memory.mode_strides)
    return None


def whole(e: Emitter, place: Place, shape: Sequence[int]) -> str:
    """C condition: no element of a tile of `shape` lies outside the tensor."""
    size = dict(zip(place.window.dims, shape, strict=True))
    parts = []
    for dim, (offset, extent) in enumerate(zip(place.offsets, place.tensor.shape, strict=True)):
        parts.append(f"{offset} >= 0 && {offset} + {size.get(dim, 1)} <= {e.scalar(extent)}")
    return " && ".join(parts) or "1"


def inside(e: Emitter, place: Place, coordinates: Sequence[str]) -> str:
    """C condition: one element lies inside the tensor."""
    pairs = zip(coordinates, place.tensor.shape, strict=True)
    return " && ".join(f"{c} >= 0 && {c} < {e.scalar(extent)}" for c, extent in pairs) or "1"


def element(e: Emitter, tensor: Tensor, coordinates: Sequence[str]) -> str:
    """C expression: number of the element at `coordinates` in memory."""
    strides = strides_of(tensor)
    if strides is not None:
        return _sum(_times(c, e.scalar(s)) for c, s in zip(coordinates, strides, strict=True))
    memory = tensor.memory
    homes = homes_of_modes(memory.shape, memory.mode_shape)
    parts = [
        _times(f"({coordinates[home.dim or 0]}) / {home.stride} % {home.size}", str(stride))
        for home, stride in zip(homes, memory.mode_strides, strict=True)
    ]
    offset = _sum(parts)
    if memory.swizzle is not None:
        return f"swizzled({offset}, {memory.swizzle.mask}, {memory.swizzle.shift})"
    return offset


def constant_element(e: Emitter, place: Place, index: Int[np.ndarray, " rank"]) -> str:
    """C expression: how far the element at a constant index of the tile is from the window's start."""
    strides = strides_of(place.tensor)
    assert strides is not None
    steps = [(int(i), strides[dim]) for i, dim in zip(index, place.window.dims, strict=True)]
    return _sum(e.scalar(stride * i) for i, stride in steps if i)


def tile_index(digits: Sequence[Digit], number: str, rank: int) -> list[list[str]]:
    """For each dimension of a tile, C terms that the digits of a thread or slot `number` add to the index."""
    terms: list[list[str]] = [[] for _ in range(rank)]
    weight = 1
    for digit in reversed(digits):
        if digit.dim is not None:
            part = number if weight == 1 else f"{number} / {weight}"
            terms[digit.dim].append(_times(f"{part} % {digit.size}", str(digit.stride)))
        weight *= digit.size
    return terms


def coordinates_of(place: Place, layout: RegisterLayout, thread: str, slot: str) -> list[str]:
    """C expressions of the tensor coordinates of (thread, slot)."""
    by_thread = tile_index(layout.spatial_digits, thread, layout.rank)
    by_slot = tile_index(layout.local_digits, slot, layout.rank)
    coordinates = list(place.offsets)
    for tile_dim, dim in enumerate(place.window.dims):
        coordinates[dim] = " + ".join([coordinates[dim], *by_thread[tile_dim], *by_slot[tile_dim]])
    return coordinates


def vector_dim(held: Held, window: Window) -> int | None:
    """The dimension of the tile along which each register of a group is one full vector in memory.

    None where lanes, or the parts of a word, are not neighbours.
    """
    strides = strides_of(window.tensor)
    parts = 32 // held.bits if held.bits in (8, 16, 32) else 0
    if strides is None or not parts or held.slots % parts or held.uniform:
        return None
    table = held.indices.reshape(held.groups, held.lanes, held.count, parts, -1)
    steps: Int[np.ndarray, "groups lanes count parts rank"] = table - table[:, :1, :, :1]
    expected = parts * np.arange(held.lanes)[:, None] + np.arange(parts)
    for tile_dim, dim in enumerate(window.dims):
        others = np.delete(steps, tile_dim, axis=-1)
        along = steps[..., tile_dim] == expected[:, None, :]
        if strides[dim] == Const(1) and along.all() and not others.any():
            return tile_dim
    return None


def _times(value: str, stride: str) -> str:
    if stride == "1":
        return value
    return f"{value if value.isidentifier() else f'({value})'} * {stride}"


def _sum(parts: Iterable[str]) -> str:
    return " + ".join(part for part in parts if part != "0") or "0"
