"""y = W · x for a weight matrix stored by rows: the lanes run along k and are summed at the end.

Source: Tilus (2025), section 9; the scale is applied once to the sum of a group.
"""

from shoestring.kernels.tile.builder import Builder
from shoestring.kernels.tile.expressions import ceil_div
from shoestring.kernels.tile.ir import Program
from shoestring.kernels.tile.layout import local, replicate
from shoestring.kernels.tile.packing import PackedTile
from shoestring.kernels.tile.target import Target
from shoestring.kernels.tile.types import DataType


def gemv_tile(weights: DataType, target: Target, group_size: int, rows: int = 4) -> PackedTile:
    """`rows` rows of one group of columns, the group spread evenly over the lanes.

    Raises: LayoutError where a lane's share of a row group is not whole words.
    """
    run = group_size // target.group
    layout = local(rows, 1).spatial(1, target.group).local(1, run)
    return PackedTile(weights, layout, target)


def gemv(tile: PackedTile) -> Program:
    """x [k] f32, packed W [n, k], scales [n, k / group] f32 -> y [n] f32, a block for each row of tiles."""
    b = Builder(f"gemv_{tile.dtype}", threads=tile.layout.threads)
    n, k = b.scalar("n", divisible_by=tile.rows), b.scalar("k", divisible_by=tile.cols)
    x, packed = b.pointer("x", "f32"), b.pointer("packed", "u8")
    scales, y = b.pointer("scales", "f32"), b.pointer("y", "f32")
    b.grid(ceil_div(n, tile.rows))
    (row,) = b.block_indices()
    groups = k // tile.cols
    view_x, view_y = b.view_global(x, [1, k]), b.view_global(y, [n, 1])
    view_w = b.view_global(packed, [n // tile.rows, groups, tile.tile_bytes])
    view_s = b.view_global(scales, [n, groups])
    column = local(tile.rows, 1) * replicate(tile.layout.threads)
    total = b.allocate_register("f32", (tile.rows, 1), layout=column, init=0.0)
    with b.loop("group", groups) as group:
        raw = b.load_global(view_w, [row, group, 0], shape=[tile.tile_bytes], layout=tile.flat)
        weights = b.cast(b.view(raw, tile.dtype, tile.layout.shape, layout=tile.layout), "f32")
        part = b.load_global(view_x, [0, group * tile.cols], shape=(1, tile.cols))
        scale = b.load_global(view_s, [row * tile.rows, group], shape=(tile.rows, 1))
        b.add(total, b.mul(b.reduce("sum", b.mul(weights, part), 1), scale), out=total)
    b.store_global(view_y, total, [row * tile.rows, 0])
    return b.build()
