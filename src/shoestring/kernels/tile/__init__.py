"""The tile machine: programs over tiles, layouts of registers, and what every back end is checked against."""

from shoestring.kernels.tile.builder import Builder
from shoestring.kernels.tile.interpreter import run
from shoestring.kernels.tile.layout import RegisterLayout
from shoestring.kernels.tile.packing import PackedTile
from shoestring.kernels.tile.prepare import PreparedProgram, prepare
from shoestring.kernels.tile.target import AVX2, AVX512, CUDA, Target
from shoestring.kernels.tile.types import DataType, data_type

__all__ = [
    "AVX2",
    "AVX512",
    "CUDA",
    "Builder",
    "DataType",
    "PackedTile",
    "PreparedProgram",
    "RegisterLayout",
    "Target",
    "data_type",
    "prepare",
    "run",
]
