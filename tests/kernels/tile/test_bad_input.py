"""Each kind of bad input to the tile machine is refused with what was wrong and what would be right."""

import dataclasses

import numpy as np
import pytest
import torch

from shoestring.errors import LayoutError, ProgramError
from shoestring.kernels.packed_linear import PackedWeights
from shoestring.kernels.tile.builder import Builder
from shoestring.kernels.tile.c.choice import choose_isa
from shoestring.kernels.tile.group_quantise import quantise_groups
from shoestring.kernels.tile.layout import RegisterLayout, local, spatial
from shoestring.kernels.tile.packing import PackedTile
from shoestring.kernels.tile.prepare import prepare
from shoestring.kernels.tile.programs.group_affine import GroupAffineConfig
from shoestring.kernels.tile.programs.matmul import MatmulConfig
from shoestring.kernels.tile.target import AVX2, AVX512, CUDA
from shoestring.kernels.tile.types import data_type


def viewed(dtype, layout):
    """A program that views 32 bytes of each of 32 threads as something else."""
    b = Builder("test", threads=32)
    b.grid(1)
    b.block_indices()
    source = b.view_global(b.pointer("x", "u8"), [1024])
    raw = b.load_global(source, [0], shape=[1024], layout=spatial(32).local(32))
    b.view(raw, dtype, layout.shape, layout=layout)
    return prepare(b.build(), CUDA)


def packed_for(target):
    codes = torch.zeros(32, 64, dtype=torch.uint8)
    return PackedWeights.pack(codes, "u4", 32, target)


CASES = {
    "bits that fill no bytes on a GPU": (
        lambda: PackedTile(data_type("u3"), local(2, 1).spatial(1, 32), CUDA),
        LayoutError, r"local\(2, 1\).*2 elements of u3, 6 bits: not whole words of 8 bits on cuda",
    ),
    "bits that fill no words on a processor": (
        lambda: PackedTile(data_type("u5"), local(8, 1).spatial(1, 8), AVX2),
        LayoutError, r"local\(8, 1\).*8 elements of u5, 40 bits: not whole words of 32 bits on avx2",
    ),
    "a View with other bits names both layouts": (
        lambda: viewed("u4", spatial(32).local(32)),
        LayoutError, r"u8 spatial\(32\).local\(32\) has 32 threads × 256 bits, u4 spatial\(32\).local\(32\)",
    ),
    "a View with other threads": (
        lambda: viewed("u8", spatial(16).local(64)),
        ProgramError, "is spread over 16 threads, the block has 32",
    ),
    "a division that leaves a rest names both layouts": (
        lambda: local(3, 4) / local(1, 3), LayoutError, r"local\(3, 4\).*local\(1, 3\)",
    ),
    "modes that do not multiply to the shape": (
        lambda: RegisterLayout((6,), (2, 2), (0,), (1,)), LayoutError, "do not multiply to shape",
    ),
    "groups that are not whole tiles": (
        lambda: MatmulConfig(data_type("i4"), data_type("f16"), CUDA, 48, repeats=(1, 1, 2)),
        ProgramError, "group_size=48 is not whole tiles of 32 rows; use a multiple of 32",
    ),
    "groups that are not whole runs": (
        lambda: GroupAffineConfig(data_type("i4"), AVX512, 48, 1, 1, False),
        ProgramError, "group_size=48 is not whole runs of 32; pad the groups to 64",
    ),
    "an unsigned type for symmetric weights": (
        lambda: quantise_groups(np.ones((4, 4), np.float32), data_type("u4"), 2, data_type("f16")),
        ValueError, "u4 is unsigned: a symmetric quantiser needs a sign, use i4",
    ),
    "a matrix that is not whole tiles": (
        lambda: PackedTile(data_type("u4"), local(32, 1).spatial(1, 16), AVX512).pack(np.ones((40, 16), int)),
        ValueError, "40 × 16 is not whole tiles of 32 × 16; pad it to 64 × 16",
    ),
    "an instruction set that nobody has": (
        lambda: choose_isa(AVX512, "avx1024"),
        ProgramError, "unknown instruction set 'avx1024'; there are avx512vnni, avx512, ",
    ),
    "weights packed for another number of lanes": (
        lambda: dataclasses.replace(packed_for(AVX2), target=AVX512),
        ValueError, r"packed data of shape \(4, 2, 128\).*take \(2, 2, 256\) on avx512: packed for another",
    ),
    "an element type that nobody has": (
        lambda: data_type("u9"), ValueError, "unknown element type 'u9'; there are i2..i8, u1..u8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    call, kind, message = CASES[case]
    with pytest.raises(kind, match=message):
        call()
