"""y = x · W for weights s·q + c with a scale s and an offset c for each group of inputs, read as a stream.

Neither is applied to single weights: of each group y += s · (Σ q x) + c · (Σ x), and the sums of x are the
same for all outputs. The tiles of one column of tiles follow one another in memory, so that a block reads
a few streams from start to end.

Source: Efficient Mixed-Precision Large Language Model Inference with TurboMind (2025), section 7; Tilus
(2025), section 9.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor as TorchTensor

from shoestring.errors import ProgramError
from shoestring.kernels.tile.builder import Builder
from shoestring.kernels.tile.expressions import ceil_div
from shoestring.kernels.tile.ir import Program
from shoestring.kernels.tile.layout import RegisterLayout, column_local, local, replicate, spatial
from shoestring.kernels.tile.packing import PackedTile
from shoestring.kernels.tile.programs.matmul import LANE_RUN
from shoestring.kernels.tile.target import Target
from shoestring.kernels.tile.types import DataType


@dataclass(frozen=True)
class GroupAffineConfig:
    """Tiling of a product with `rows` rows of x and `columns` vectors of outputs in a block.

    `group_size`: inputs that share a scale, whole runs of 32. `offsets`: whether groups have one.

    Raises: ProgramError for a group size that is not whole runs, or counts below 1.
    """

    weights: DataType
    target: Target
    group_size: int
    rows: int
    columns: int
    offsets: bool

    def __post_init__(self) -> None:
        if self.group_size < 1 or self.group_size % LANE_RUN:
            raise ProgramError(
                f"group_size={self.group_size} is not whole runs of {LANE_RUN}; pad the groups to "
                f"{max(-(-self.group_size // LANE_RUN), 1) * LANE_RUN}"
            )
        if min(self.rows, self.columns) < 1:
            raise ProgramError(f"{self}: rows and columns are at least 1")

    @functools.cached_property
    def packed(self) -> PackedTile:
        """How W (inputs, outputs) is stored: independent of rows and columns."""
        return packed_tile(self.weights, self.target)

    @property
    def block_n(self) -> int:
        return self.columns * self.target.group


def packed_tile(weights: DataType, target: Target) -> PackedTile:
    """Runs of 32 inputs, one output in a lane."""
    return PackedTile(weights, local(LANE_RUN, 1).spatial(1, target.group), target)


def pack(
    codes: Integer[TorchTensor, "k n"], weights: DataType, target: Target
) -> UInt8[TorchTensor, "across down bytes"]:
    """Codes of W, padded to whole tiles with zeros, column of tiles after column of tiles."""
    tile = packed_tile(weights, target)
    k, n = codes.shape
    padded = torch.nn.functional.pad(codes.to(torch.int32), (0, -n % tile.cols, 0, -k % tile.rows))
    packed: Any = tile.pack(padded)
    return packed.transpose(0, 1).contiguous()


def rows_in_blocks(x: Float[TorchTensor, "m k"], rows: int) -> Float[TorchTensor, "blocks runs rows 32"]:
    """x as the program reads it, with rows of zeros up to whole blocks: the rows of a block run by run, so
    that they lie side by side whatever k is. k is whole runs of 32."""
    if rows == 1:  # in this order already
        return x.contiguous().view(x.shape[0], x.shape[1] // LANE_RUN, 1, LANE_RUN)
    padded = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[0] % rows))
    return padded.reshape(-1, rows, x.shape[1] // LANE_RUN, LANE_RUN).transpose(1, 2).contiguous()


def group_affine(config: GroupAffineConfig) -> Program:
    """x f32 as `rows_in_blocks`, packed [⌈n / lanes⌉, k / 32, bytes], scales [groups, n] f32 -> y [m, n] f32.

    With offsets also offsets [groups, n] and sums [m, groups], the sums of x over each group. k is a multiple
    of the group size.
    """
    tile, group_size, rows, columns = config.packed, config.group_size, config.rows, config.columns
    b = Builder(f"group_affine_{config.weights}", threads=config.target.group)
    m, n, k = b.scalar("m"), b.scalar("n"), b.scalar("k", divisible_by=group_size)
    x, packed, scales = b.pointer("x", "f32"), b.pointer("packed", "u8"), b.pointer("scales", "f32")
    groups = k // group_size
    view_x = b.view_global(x, [ceil_div(m, rows), k // LANE_RUN, rows, LANE_RUN])
    view_w = b.view_global(packed, [ceil_div(n, tile.cols), k // tile.rows, tile.tile_bytes])
    view_s = b.view_global(scales, [groups, n])
    if config.offsets:
        view_c = b.view_global(b.pointer("offsets", "f32"), [groups, n])
        view_sums = b.view_global(b.pointer("sums", "f32"), [m, groups])
    view_y = b.view_global(b.pointer("y", "f32"), [m, n])
    b.grid(ceil_div(m, rows), ceil_div(n, config.block_n))
    i, j = b.block_indices()
    row, col = i * rows, j * config.block_n
    shape = (rows, config.block_n)
    accumulator = local(rows, columns) * spatial(1, config.target.group)
    raw_layout = column_local(columns, 1).unsqueeze([2]) * tile.flat.unsqueeze([0, 1])
    codes_layout = local(1, columns) * tile.layout
    total = b.allocate_register("f32", shape, layout=accumulator, init=0.0, name="total")
    with b.loop("group", groups) as group:
        partial = b.allocate_register("f32", shape, layout=accumulator, init=0.0, name="partial")
        with b.loop("run", group_size // LANE_RUN) as run:
            k0 = group * group_size + run * LANE_RUN
            part = b.load_global(
                view_x,
                [i, k0 // LANE_RUN, 0, 0],
                shape=(rows, LANE_RUN),
                layout=_same_in_all(config, rows, LANE_RUN),
                name="part",
            )
            raw = b.load_global(
                view_w,
                [j * columns, k0 // LANE_RUN, 0],
                shape=raw_layout.shape,
                layout=raw_layout,
                name="raw",
            )
            codes = b.view(raw, config.weights, (LANE_RUN, config.block_n), layout=codes_layout, name="codes")
            b.dot(part, b.cast(codes, "f32", name="weights"), partial, out=partial)
        line = local(1, columns) * spatial(1, config.target.group)
        scale = b.load_global(view_s, [group, col], shape=(1, config.block_n), layout=line, name="scale")
        b.add(total, b.mul(partial, scale), out=total)
        if config.offsets:
            offset = b.load_global(
                view_c, [group, col], shape=(1, config.block_n), layout=line, name="offset"
            )
            column = _same_in_all(config, rows, 1)
            sums_x = b.load_global(view_sums, [row, group], shape=(rows, 1), layout=column, name="sum_x")
            b.dot(sums_x, offset, total, out=total)
    b.store_global(view_y, total, [row, col])
    return b.build()


def _same_in_all(config: GroupAffineConfig, *shape: int) -> RegisterLayout:
    return replicate(config.target.group) * local(*shape)
