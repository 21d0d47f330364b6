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
from shoestring.kernels.tile.expressions import Expr, Var, ceil_div
from shoestring.kernels.tile.ir import Program, Tensor
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


@dataclass(frozen=True)
class _Weights:
    """The tensors in memory that belong to the weights of one product, and where the block works."""

    config: GroupAffineConfig
    codes: Tensor
    scales: Tensor
    offsets: tuple[Tensor, Tensor] | None
    """Offsets and the sums of x."""
    y: Tensor
    row: Expr
    j: Var

    @property
    def shape(self) -> tuple[int, int]:
        return self.config.rows, self.config.block_n

    @property
    def col(self) -> Expr:
        return self.j * self.config.block_n

    @property
    def accumulator(self) -> RegisterLayout:
        return local(self.config.rows, self.config.columns) * spatial(1, self.config.target.group)

    @property
    def _line(self) -> RegisterLayout:
        return local(1, self.config.columns) * spatial(1, self.config.target.group)


def group_affine(config: GroupAffineConfig) -> Program:
    """y [m, n] = x · (s·q + c).

    x is [blocks of rows, k / 32, rows, 32] as `rows_in_blocks` lays it, scales [groups, n]; with offsets,
    offsets [groups, n] and sums [m, groups], the sums of x over each group. k is a multiple
    of the group size.
    """
    b = Builder(f"group_affine_{config.weights}", threads=config.target.group)
    m, n, k = _sizes(b, config)
    rows = config.rows
    x = b.pointer("x", "f32")
    view_x = b.view_global(x, [ceil_div(m, rows), k // LANE_RUN, rows, LANE_RUN])
    i, at = _declare(b, config, m, n, k)
    total = b.allocate_register("f32", at.shape, layout=at.accumulator, init=0.0, name="total")
    with b.loop("group", k // config.group_size) as group:
        partial = b.allocate_register("f32", at.shape, layout=at.accumulator, init=0.0, name="partial")
        with b.loop("run", config.group_size // LANE_RUN) as run:
            step = group * (config.group_size // LANE_RUN) + run
            part = b.load_global(
                view_x,
                [i, step, 0, 0],
                shape=(rows, LANE_RUN),
                layout=_same_in_all(config, rows, LANE_RUN),
                name="part",
            )
            b.dot(part, _values(b, at, step), partial, out=partial)
        _add_group(b, at, group, partial, total)
    b.store_global(at.y, total, [at.row, at.col])
    return b.build()


def group_limbs(config: GroupAffineConfig, limbs: int) -> Program:
    """y [m, n] = x · (s·q + c) for x in whole numbers of `limbs` bytes with a scale for each group and row.

    As `group_affine`, but for x: [blocks of rows, k / 32, limbs · rows, 8] words of four bytes, and factors
    [blocks of rows, groups, limbs · rows], what one counts in each byte; both as `split_in_limbs` lays them.
    The sums of products within a group are whole numbers: machines that multiply bytes are at their best.
    """
    b = Builder(f"group_limbs_{config.weights}_{limbs}", threads=config.target.group)
    m, n, k = _sizes(b, config)
    rows, columns, group_size = limbs * config.rows, config.columns, config.group_size
    blocks, groups = ceil_div(m, config.rows), k // group_size
    x, factors = b.pointer("x", "i32"), b.pointer("factors", "f32")
    view_x = b.view_global(x, [blocks, k // LANE_RUN, rows, LANE_RUN // 4])
    view_f = b.view_global(factors, [blocks, groups, rows, 1])
    i, at = _declare(b, config, m, n, k)
    total = b.allocate_register("f32", at.shape, layout=at.accumulator, init=0.0, name="total")
    layout = local(rows, columns) * spatial(1, config.target.group)
    with b.loop("group", groups) as group:
        shape = (rows, config.block_n)
        partial = b.allocate_register("f32", shape, layout=layout, init=0.0, name="partial")
        with b.loop("run", group_size // LANE_RUN) as run:
            step = group * (group_size // LANE_RUN) + run
            words = b.load_global(
                view_x,
                [i, step, 0, 0],
                shape=(rows, LANE_RUN // 4),
                layout=_same_in_all(config, rows, LANE_RUN // 4),
                name="words",
            )
            part = b.view(
                words, "i8", (rows, LANE_RUN), layout=_same_in_all(config, rows, LANE_RUN), name="part"
            )
            b.dot(b.cast(part, "f32"), _values(b, at, step), partial, out=partial)
        column = _same_in_all(config, rows, 1)
        factor = b.load_global(view_f, [i, group, 0, 0], shape=(rows, 1), layout=column, name="factor")
        by_limb = b.view(
            b.mul(partial, factor),
            "f32",
            (limbs, *at.shape),
            layout=local(limbs, config.rows, columns) * spatial(1, 1, config.target.group),
        )
        _add_group(b, at, group, b.squeeze(b.reduce("sum", by_limb, 0), [0]), total)
    b.store_global(at.y, total, [at.row, at.col])
    return b.build()


def _sizes(b: Builder, config: GroupAffineConfig) -> tuple[Var, Var, Var]:
    return b.scalar("m"), b.scalar("n"), b.scalar("k", divisible_by=config.group_size)


def _declare(b: Builder, config: GroupAffineConfig, m: Var, n: Var, k: Var) -> tuple[Var, _Weights]:
    """Views of all but x, the grid, and the number of the block of rows. Blocks that read the same weights
    follow one another."""
    tile, groups = config.packed, k // config.group_size
    packed, scales = b.pointer("packed", "u8"), b.pointer("scales", "f32")
    view_w = b.view_global(packed, [ceil_div(n, tile.cols), k // tile.rows, tile.tile_bytes])
    view_s = b.view_global(scales, [groups, n])
    offsets = None
    if config.offsets:
        view_c = b.view_global(b.pointer("offsets", "f32"), [groups, n])
        offsets = view_c, b.view_global(b.pointer("sums", "f32"), [m, groups])
    view_y = b.view_global(b.pointer("y", "f32"), [m, n])
    b.grid(ceil_div(n, config.block_n), ceil_div(m, config.rows))
    j, i = b.block_indices()
    return i, _Weights(config, view_w, view_s, offsets, view_y, i * config.rows, j)


def _values(b: Builder, at: _Weights, step: Expr) -> Tensor:
    """The values of the codes of run `step` of the block's columns."""
    config, tile = at.config, at.config.packed
    raw_layout = column_local(config.columns, 1).unsqueeze([2]) * tile.flat.unsqueeze([0, 1])
    raw = b.load_global(
        at.codes, [at.j * config.columns, step, 0], shape=raw_layout.shape, layout=raw_layout, name="raw"
    )
    layout = local(1, config.columns) * tile.layout
    codes = b.view(raw, config.weights, (LANE_RUN, config.block_n), layout=layout, name="codes")
    return b.cast(codes, "f32", name="weights")


def _add_group(b: Builder, at: _Weights, group: Expr, partial: Tensor, total: Tensor) -> None:
    """total += s · partial + c · (sums of x), of one group."""
    shape = (1, at.config.block_n)
    scale = b.load_global(at.scales, [group, at.col], shape=shape, layout=at._line, name="scale")
    b.add(total, b.mul(partial, scale), out=total)
    if at.offsets is not None:
        view_c, view_sums = at.offsets
        offset = b.load_global(view_c, [group, at.col], shape=shape, layout=at._line, name="offset")
        column = _same_in_all(at.config, at.config.rows, 1)
        sums_x = b.load_global(
            view_sums, [at.row, group], shape=(at.config.rows, 1), layout=column, name="sum_x"
        )
        b.dot(sums_x, offset, total, out=total)


def _same_in_all(config: GroupAffineConfig, *shape: int) -> RegisterLayout:
    return replicate(config.target.group) * local(*shape)
