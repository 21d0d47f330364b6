"""Weights packed for the threads that will use them: each tile in the order in which registers hold it.

The elements that one thread holds of a tile, in slot order, form one bit string of whole bytes. Stored in the
layout of flat bytes, a tile is read back by wide contiguous loads and a View that costs nothing. The packer
pushes the codes through the layout that the unpacking program declares, so it is right for every target.

Source: Tilus (2025), section 5 (weight layout transform); Efficient Mixed-Precision Large Language Model
Inference with TurboMind (2025), section 4 (hardware-aware packing).
"""

import functools
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor as TorchTensor

from shoestring.errors import LayoutError
from shoestring.kernels.tile.builder import Builder
from shoestring.kernels.tile.inference import flat_bytes, infer_layouts
from shoestring.kernels.tile.ir import Program
from shoestring.kernels.tile.layout import RegisterLayout
from shoestring.kernels.tile.target import Target
from shoestring.kernels.tile.types import DataType, data_type
from shoestring.numbers.packing import pack_bits, unpack_bits

Array = TypeVar("Array")


@dataclass(frozen=True)
class PackedTile:
    """How a matrix of `dtype` codes (rows, cols) is cut and packed for a target.

    `layout`: where the threads that compute hold a tile; its shape is the tile's.

    Raises: LayoutError where a thread's elements do not fill whole words of the target, with what would.
    """

    dtype: DataType
    layout: RegisterLayout
    target: Target

    def __post_init__(self) -> None:
        if self.layout.rank != 2:
            raise LayoutError(f"a packed tile is a matrix; {self.layout!r} has rank {self.layout.rank}")
        if self.layout.replicas > 1:
            raise LayoutError(f"{self.layout!r} holds copies; pack the tile of one group of threads")
        word, bits = self.target.word_bits, self.layout.local_size * self.dtype.bits
        if bits % word:
            raise LayoutError(
                f"{self.layout!r} gives each thread {self.layout.local_size} elements of {self.dtype}, "
                f"{bits} bits: not whole words of {word} bits on {self.target.name}"
            )

    @property
    def rows(self) -> int:
        return self.layout.shape[0]

    @property
    def cols(self) -> int:
        return self.layout.shape[1]

    @property
    def bytes_per_thread(self) -> int:
        return self.layout.local_size * self.dtype.bits // 8

    @property
    def tile_bytes(self) -> int:
        return self.layout.threads * self.bytes_per_thread

    @property
    def flat(self) -> RegisterLayout:
        """Which thread holds which byte of the packed tile."""
        return flat_bytes(self.layout.threads, self.bytes_per_thread, self.target.flat_bytes)

    def grid_of(self, rows: int, cols: int) -> tuple[int, int]:
        """Tiles along rows and columns. Raises: ValueError for a matrix that is not whole tiles."""
        if rows % self.rows or cols % self.cols:
            raise ValueError(
                f"a matrix {rows} × {cols} is not whole tiles of {self.rows} × {self.cols}; pad it to "
                f"{-(-rows // self.rows) * self.rows} × {-(-cols // self.cols) * self.cols}"
            )
        return rows // self.rows, cols // self.cols

    @functools.cached_property
    def _element_order(self) -> Int[np.ndarray, " elements"]:
        """Row-major number of the tile's element at each place of the threads' bit strings."""
        return self.layout.flat_table.reshape(-1)

    @functools.cached_property
    def _byte_order(self) -> Int[np.ndarray, " bytes"]:
        """For each byte of the packed tile its number among the threads' bit strings, one after another."""
        return np.argsort(self.flat.flat_table.reshape(-1))

    def pack(self, codes: Array) -> Array:
        """Codes (rows, cols), unsigned, to bytes (tile rows, tile cols, tile_bytes), uint8.

        NumPy array or torch tensor, and the result likewise.

        Raises: ValueError for a matrix that is not whole tiles, or a code too large.
        """
        matrix: Any = codes
        down, across = self.grid_of(*matrix.shape)
        tiles = matrix.reshape(down, self.rows, across, self.cols).swapaxes(1, 2)
        tiles = tiles.reshape(down, across, self.rows * self.cols)
        by_thread = tiles[..., _index(self._element_order, matrix)]
        strings = pack_bits(
            by_thread.reshape(down, across, self.layout.threads, self.layout.local_size), self.dtype.bits
        )
        packed: Any = strings.reshape(down, across, self.tile_bytes)[..., _index(self._byte_order, matrix)]
        return packed

    def unpack(self, packed: Array) -> Array:
        """The codes (rows, cols) of packed bytes (tile rows, tile cols, tile_bytes)."""
        data: Any = packed
        down, across, size = data.shape
        if size != self.tile_bytes:
            raise ValueError(
                f"tiles of {size} bytes; {self.layout!r} of {self.dtype} on {self.target.name} takes "
                f"{self.tile_bytes}: packed for another target or type"
            )
        strings = data[..., _index(np.argsort(self._byte_order), data)]
        strings = strings.reshape(down, across, self.layout.threads, self.bytes_per_thread)
        by_thread = unpack_bits(strings, self.dtype.bits, self.layout.local_size)
        tiles = by_thread.reshape(down, across, self.rows * self.cols)
        tiles = tiles[..., _index(np.argsort(self._element_order), data)]
        tiles = tiles.reshape(down, across, self.rows, self.cols).swapaxes(1, 2)
        codes: Any = tiles.reshape(down * self.rows, across * self.cols)
        return codes

    def change_layout_program(self) -> Program:
        """Compact codes [rows, cols] -> packed bytes [tile rows, tile cols, tile bytes], one block a tile."""
        k = Builder(f"change_layout_{self.dtype}", threads=self.layout.threads)
        rows, cols = k.scalar("rows", divisible_by=self.rows), k.scalar("cols", divisible_by=self.cols)
        source, target = k.pointer("codes", self.dtype), k.pointer("packed", "u8")
        k.grid(rows // self.rows, cols // self.cols)
        i, j = k.block_indices()
        matrix = k.view_global(source, [rows, cols])
        tiles = k.view_global(target, [rows // self.rows, cols // self.cols, self.tile_bytes])
        tile = k.load_global(
            matrix, [i * self.rows, j * self.cols], shape=self.layout.shape, layout=self.layout
        )
        k.store_global(tiles, k.view(tile, "u8", [self.tile_bytes], layout=self.flat), [i, j, 0])
        return infer_layouts(k.build(), self.target)

    def restore_layout_program(self) -> Program:
        """Packed bytes -> codes [rows, cols], one code a byte: no two threads write one byte."""
        k = Builder(f"restore_layout_{self.dtype}", threads=self.layout.threads)
        rows, cols = k.scalar("rows", divisible_by=self.rows), k.scalar("cols", divisible_by=self.cols)
        source, target = k.pointer("packed", "u8"), k.pointer("codes", "u8")
        k.grid(rows // self.rows, cols // self.cols)
        i, j = k.block_indices()
        tiles = k.view_global(source, [rows // self.rows, cols // self.cols, self.tile_bytes])
        matrix = k.view_global(target, [rows, cols])
        flat = k.load_global(tiles, [i, j, 0], shape=[self.tile_bytes], layout=self.flat)
        codes = k.view(flat, data_type(f"u{self.dtype.bits}"), self.layout.shape, layout=self.layout)
        k.store_global(matrix, k.cast(codes, "u8"), [i * self.rows, j * self.cols])
        return infer_layouts(k.build(), self.target)


def _index(order: Int[np.ndarray, " n"], like: Any) -> Any:
    return torch.from_numpy(order).to(like.device) if isinstance(like, TorchTensor) else order
