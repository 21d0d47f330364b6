"""C = A · W for weights of any narrow type: two programs over one choice of tiles.

`pipelined_matmul` keeps several tiles on their way through shared memory (GPU); `streaming_matmul` reads
packed weights straight into registers and scales once a group (processor). Both split K over blocks that add
to C in turn, kept in order by a semaphore.

Source: Tilus (2025), section 9 (quantised matmul template).
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from shoestring.errors import ProgramError
from shoestring.kernels.tile.builder import Builder
from shoestring.kernels.tile.expressions import Expr, Var, ceil_div, minimum
from shoestring.kernels.tile.fragments import MMA_M16N8K16_A, MMA_M16N8K16_B, MMA_M16N8K16_C
from shoestring.kernels.tile.ir import Program, Tensor
from shoestring.kernels.tile.layout import RegisterLayout, local, replicate, spatial
from shoestring.kernels.tile.packing import PackedTile
from shoestring.kernels.tile.target import Target
from shoestring.kernels.tile.types import DataType

LANE_RUN = 32  # elements of one column in a lane: whole 32-bit words at every width


@dataclass(frozen=True)
class MatmulConfig:
    """Types and tiling of a quantised matrix product A (m, k) · W (k, n) on `target`.

    `warps`: groups of threads along m and n. `repeats`: fragments of each group along m, n and k. `stages`:
    tiles on their way in the pipelined program. `split_k`: blocks that share one tile of C. `aligned`: a
    promise that k and n are divisible by it, which wide loads of A and C build on.

    Raises: ProgramError for a group size that is not whole tiles, or counts below 1.
    """

    weights: DataType
    activations: DataType
    target: Target
    group_size: int
    warps: tuple[int, int] = (1, 1)
    repeats: tuple[int, int, int] = (1, 1, 1)
    stages: int = 3
    split_k: int = 1
    aligned: int = 1

    def __post_init__(self) -> None:
        counts = (*self.warps, *self.repeats, self.split_k, self.group_size, self.aligned)
        if min(counts) < 1 or self.stages < 2:
            raise ProgramError(f"{self}: counts are at least 1, stages at least 2")
        if self.group_size % self.block_k:
            raise ProgramError(
                f"group_size={self.group_size} is not whole tiles of {self.block_k} rows; use a multiple of "
                f"{self.block_k}, or fewer repeats along k"
            )

    @functools.cached_property
    def fragment_a(self) -> RegisterLayout:
        if self.target.has_tensor_cores:
            return MMA_M16N8K16_A
        return replicate(self.target.group) * local(1, LANE_RUN)

    @functools.cached_property
    def fragment_b(self) -> RegisterLayout:
        if self.target.has_tensor_cores:
            return local(1, 2) * MMA_M16N8K16_B
        return local(LANE_RUN, 1).spatial(1, self.target.group)

    @functools.cached_property
    def fragment_c(self) -> RegisterLayout:
        if self.target.has_tensor_cores:
            return local(1, 2) * MMA_M16N8K16_C
        return spatial(1, self.target.group)

    @functools.cached_property
    def threads(self) -> int:
        return self.warps[0] * self.warps[1] * self.target.group

    @functools.cached_property
    def block_m(self) -> int:
        return self.warps[0] * self.repeats[0] * self.fragment_c.shape[0]

    @functools.cached_property
    def block_n(self) -> int:
        return self.warps[1] * self.repeats[1] * self.fragment_c.shape[1]

    @functools.cached_property
    def block_k(self) -> int:
        return self.repeats[2] * self.fragment_b.shape[0]

    @functools.cached_property
    def accumulator(self) -> RegisterLayout:
        m, n, _ = self.repeats
        return local(m, n) * spatial(*self.warps) * self.fragment_c

    @functools.cached_property
    def _weight_tiles(self) -> RegisterLayout:
        """Which group of threads holds which packed tile of a block; groups along m hold copies."""
        _, n, k = self.repeats
        return local(k, n) * spatial(*self.warps).reduce([0], keepdims=True)

    @functools.cached_property
    def operand_b(self) -> RegisterLayout:
        return self._weight_tiles * self.fragment_b

    @functools.cached_property
    def packed(self) -> PackedTile:
        """How W is stored."""
        return PackedTile(self.weights, self.fragment_b, self.target)

    @functools.cached_property
    def packed_bytes(self) -> RegisterLayout:
        """Where the bytes of a block's tiles (rows of tiles, columns of tiles, bytes) are held."""
        return self._weight_tiles.unsqueeze([2]) * self.packed.flat.unsqueeze([0, 1])

    def pack_weights(self, codes: Integer[np.ndarray, "k n"]) -> UInt8[np.ndarray, "down across bytes"]:
        """Codes of W, padded with zeros to whole blocks, as the programs read them."""
        k, n = codes.shape
        padded = np.pad(codes.astype(np.int32), [(0, -k % self.block_k), (0, -n % self.block_n)])
        packed: Any = self.packed.pack(padded)
        return np.ascontiguousarray(packed)

    def semaphores(self, m: int, n: int) -> int:
        """How many zeroed i32 semaphores a product of this size takes."""
        return -(-m // self.block_m) * -(-n // self.block_n)


@dataclass(frozen=True)
class _Operands:
    """The tensors in memory of one product, and the block's place."""

    a: Tensor
    weights: Tensor
    scales: Tensor
    c: Tensor
    semaphores: Tensor
    k: Var
    block: tuple[Var, ...]


def _declare(b: Builder, config: MatmulConfig) -> _Operands:
    """Parameters m, n, k, a [m, k], packed, scales [⌈k/g⌉, n], c [m, n], semaphores; the grid; the views."""
    tile = config.packed
    m = b.scalar("m")
    n, k = (b.scalar(name, divisible_by=config.aligned) for name in ("n", "k"))
    kind = config.activations
    a, packed, scales = b.pointer("a", kind), b.pointer("packed", "u8"), b.pointer("scales", kind)
    c, semaphores = b.pointer("c", kind), b.pointer("semaphores", "i32")
    down, across = ceil_div(m, config.block_m), ceil_div(n, config.block_n)
    b.grid(down, across, config.split_k)
    block = b.block_indices()
    tiles_down = ceil_div(k, config.block_k) * (config.block_k // tile.rows)
    tiles_across = across * (config.block_n // tile.cols)
    return _Operands(
        b.view_global(a, [m, k]),
        b.view_global(packed, [tiles_down, tiles_across, tile.tile_bytes]),
        b.view_global(scales, [ceil_div(k, config.group_size), n]),
        b.view_global(c, [m, n]),
        b.view_global(semaphores, [down, across]),
        k,
        block,
    )


def _share(b: Builder, total: Expr, split: int, z: Expr) -> tuple[Var, Var]:
    """First and count of the items that block z of `split` works on; the last may have fewer, or none."""
    each = ceil_div(total, split)
    first = b.set_scalar("first", minimum(z * each, total))
    return first, b.set_scalar("count", minimum(each, total - first))


def streaming_matmul(config: MatmulConfig) -> Program:
    """Weights from memory to registers; the scale is applied to the sum of a group."""
    tile = config.packed
    b = Builder(f"streaming_matmul_{config.weights}_{config.activations}", threads=config.threads)
    at = _declare(b, config)
    i, j, z = at.block
    row, col = i * config.block_m, j * config.block_n
    acc_shape = (config.block_m, config.block_n)
    acc = b.allocate_register("f32", acc_shape, layout=config.accumulator, init=0.0, name="total")
    first, count = _share(b, ceil_div(at.k, config.group_size), config.split_k, z)
    with b.loop("group", count) as group:
        partial = b.allocate_register("f32", acc_shape, layout=config.accumulator, init=0.0, name="partial")
        start = (first + group) * config.group_size
        with b.loop("step", config.group_size // config.block_k) as step:
            k0 = start + step * config.block_k
            x = b.load_global(at.a, [row, k0], shape=(config.block_m, config.block_k))
            place: list[Expr | int] = [k0 // tile.rows, col // tile.cols, 0]
            raw = b.load_global(
                at.weights, place, shape=config.packed_bytes.shape, layout=config.packed_bytes
            )
            codes = b.view(raw, config.weights, config.operand_b.shape, layout=config.operand_b)
            b.dot(b.cast(x, "f32"), b.cast(codes, "f32"), partial, out=partial)
        scale = b.load_global(at.scales, [first + group, col], shape=(1, config.block_n))
        b.add(acc, b.mul(partial, b.cast(scale, "f32")), out=acc)
    _store(b, config, at, b.cast(acc, config.activations))
    return b.build()


def pipelined_matmul(config: MatmulConfig) -> Program:
    """Tiles on their way through shared memory while others are multiplied; weights scaled one by one."""
    tile, kind, stages = config.packed, config.activations, config.stages
    b = Builder(f"pipelined_matmul_{config.weights}_{kind}", threads=config.threads)
    at = _declare(b, config)
    i, j, z = at.block
    row, col = i * config.block_m, j * config.block_n
    shape_a, shape_w = (config.block_m, config.block_k), config.packed_bytes.shape
    shared_a = b.allocate_shared(kind, (stages, *shape_a), name="shared_a")
    shared_w = b.allocate_shared("u8", (stages, *shape_w), name="shared_w")
    shared_s = b.allocate_shared(kind, (stages, 1, config.block_n), name="shared_s")
    acc = b.allocate_register(
        "f32", (config.block_m, config.block_n), layout=config.accumulator, init=0.0, name="total"
    )
    first, count = _share(b, ceil_div(at.k, config.block_k), config.split_k, z)

    def fetch(step: Expr | int, stage: Expr | int) -> None:
        k0 = (first + step) * config.block_k
        b.copy_async(shared_a, at.a, [stage, 0, 0], [row, k0], shape=shape_a)
        place: list[Expr | int] = [k0 // tile.rows, col // tile.cols, 0]
        b.copy_async(shared_w, at.weights, [stage, 0, 0, 0], place, shape=shape_w)
        group = [k0 // config.group_size, col]
        b.copy_async(shared_s, at.scales, [stage, 0, 0], group, shape=(1, config.block_n))

    for stage in range(stages - 1):
        fetch(stage, stage)
        b.commit_group()
    b.wait_group(stages - 2)
    b.synchronize()
    with b.loop("step", count) as step:
        now = step % stages
        x = b.load_shared(shared_a, [now, 0, 0], shape=shape_a)
        raw = b.load_shared(shared_w, [now, 0, 0, 0], shape=shape_w, layout=config.packed_bytes)
        scale = b.load_shared(shared_s, [now, 0, 0], shape=(1, config.block_n))
        codes = b.view(raw, config.weights, config.operand_b.shape, layout=config.operand_b)
        b.dot(x, b.mul(b.cast(codes, kind), scale), acc, out=acc)
        ahead = step + (stages - 1)
        with b.when(ahead < count):
            fetch(ahead, ahead % stages)
        b.commit_group()
        b.wait_group(stages - 2)
        b.synchronize()
    b.wait_group(0)
    b.synchronize()
    for shared in (shared_a, shared_w, shared_s):
        b.free_shared(shared)
    shared_c = b.allocate_shared(kind, (config.block_m, config.block_n), name="shared_c")
    b.store_shared(shared_c, b.cast(acc, kind))
    b.synchronize()
    _store(b, config, at, b.load_shared(shared_c))
    return b.build()


def _store(b: Builder, config: MatmulConfig, at: _Operands, result: Tensor) -> None:
    """C = result, or C += result in the order of z where several blocks share K."""
    i, j, z = at.block
    place = [i * config.block_m, j * config.block_n]
    if config.split_k == 1:
        b.store_global(at.c, result, place)
        return
    b.lock_semaphore(at.semaphores, [i, j], z)
    with b.when(z > 0):
        before = b.load_global(at.c, place, shape=result.extents)
        b.add(result, before, out=result)
    b.store_global(at.c, result, place)
    b.release_semaphore(at.semaphores, [i, j], (z + 1) % config.split_k)
