"""What the machine that a tile program is compiled for can do."""

from dataclasses import dataclass

from shoestring.kernels.tile.fragments import FMA, MMA_M16N8K16, MatrixAtom
from shoestring.kernels.tile.types import DataType


@dataclass(frozen=True)
class Target:
    """Limits and abilities of a back end.

    `group`: threads that run in step (lanes of a vector, a warp); a block is a whole number of groups.
    `word_bits`: a thread's narrow elements fill whole words of this width. `shared_bytes`: on-chip memory of
    a block. `parallel_stores`: threads store at the same time, so no two may write parts of one byte.
    `flat_bytes`: contiguous bytes of each thread in a packed tile, at most.
    """

    name: str
    group: int
    word_bits: int
    shared_bytes: int
    max_threads: int
    parallel_stores: bool
    flat_bytes: int
    has_tensor_cores: bool = False

    def atoms(self, a: DataType, b: DataType, c: DataType) -> tuple[MatrixAtom, ...]:
        """The matrix steps for these element types, best first."""
        halves = a == b and a.name in ("f16", "bf16") and c.name == "f32"
        return (MMA_M16N8K16, FMA) if self.has_tensor_cores and halves else (FMA,)


AVX512 = Target("avx512", 16, 32, 1 << 20, 512, False, 4)
AVX2 = Target("avx2", 8, 32, 1 << 20, 512, False, 4)
CUDA = Target("cuda", 32, 8, 99 << 10, 1024, True, 16, has_tensor_cores=True)
"""A GPU with tensor cores and asynchronous copies; 99 KiB is the least that such a device gives a block."""
