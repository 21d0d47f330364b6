"""Sparse and dense 16-bit weights as linear kernels: how each storage is handed to the compiled code."""

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoestring.kernels.linear_kernel import LinearKernel
from shoestring.kernels.native import load_library
from shoestring.numbers.bitmap_matrix import WORD, BitmapMatrix, stream_padding
from shoestring.numbers.csr_matrix import CsrMatrix
from shoestring.numbers.sparse_values import ValueKind, decode_values, encode_matrix
from shoestring.numbers.tiled_csl import TiledCslMatrix

ISA_FLAGS = {"avx512": ("-march=x86-64-v4",), "avx2": ("-march=x86-64-v3",), "portable": ("-march=x86-64",)}
"""Smaller instruction sets than this processor's, by name: AVX-512 without its later additions, and so on."""

_KIND_NUMBERS = {ValueKind.BFLOAT16: 0, ValueKind.FLOAT16: 1, ValueKind.INT8: 2}


@dataclass(frozen=True)
class DenseMatrix:
    """A (rows, cols) matrix of 16-bit floats, every row padded with zeros to whole words of 32 columns."""

    rows: int
    cols: int
    kind: ValueKind
    values: Int[Tensor, "rows padded"]

    @classmethod
    def from_dense(cls, matrix: Tensor, kind: ValueKind = ValueKind.BFLOAT16) -> "DenseMatrix":
        """Round a floating (rows, cols) matrix to `kind`. Raises: as `encode_matrix`; ValueError for INT8."""
        if kind is ValueKind.INT8:
            raise ValueError("a dense matrix is kept in 16-bit floats; use bfloat16 or float16")
        patterns = encode_matrix(matrix, kind).patterns
        rows, cols = matrix.shape
        return cls(rows, cols, kind, torch.nn.functional.pad(patterns, (0, -matrix.shape[1] % WORD)))

    def to_dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix as floats."""
        values = decode_values(self.values.reshape(-1), self.kind)
        return values.reshape(self.values.shape)[:, : self.cols].to(dtype)

    @property
    def nonzeros(self) -> int:
        """Stored entries: all."""
        return self.rows * self.cols

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensor."""
        return self.values.nbytes


Weights = BitmapMatrix | TiledCslMatrix | CsrMatrix | DenseMatrix
"""What the kernels multiply with."""


def sparse_linear(
    weights: Weights,
    bias: Float[Tensor, " outputs"] | None = None,
    *,
    round_inputs: bool = False,
    isa: str | None = None,
) -> LinearKernel:
    """y = x Wᵀ (+ b) with sums in float32, as a kernel for a team of threads; the weights are not copied.

    round_inputs: round x to bfloat16 first, which lets pairs of products be one instruction where the
    processor has it. isa: a smaller instruction set of `ISA_FLAGS`, by default what there is.

    Raises: NoCompiler; ValueError for a bitmap whose stream lacks its padding.
    """
    code = library(isa)
    rounds = int(round_inputs)
    kind = _KIND_NUMBERS[weights.kind]
    tensors: list[Tensor | None]
    if isinstance(weights, TiledCslMatrix):
        run, scratch, tensors, sizes = "tiles_run", "tiles_scratch_bytes", [], [kind, rounds]
        tensors = [weights.items, weights.tile_offsets]
    elif isinstance(weights, CsrMatrix):
        run, scratch = "csr_run", "csr_scratch_bytes"
        tensors = [weights.columns, weights.values, weights.row_starts]
        sizes = [kind, rounds, int(weights.columns.dtype == torch.int32)]
    else:
        run, scratch = "rows_run", "rows_scratch_bytes"
        # pairs of products exist for bfloat16 alone: other values meet x as it is rounded, in float32
        pairs = 1 if rounds and weights.kind is ValueKind.BFLOAT16 else 2 if rounds else 0
        sizes = [kind, pairs]
        tensors = [weights.values, None, None, None]
        if isinstance(weights, BitmapMatrix):
            if len(weights.values) < weights.nonzeros + stream_padding(weights.kind):
                raise ValueError("the stream of values lacks its 64 bytes of padding; store the matrix anew")
            tensors = [weights.values, weights.masks, weights.row_starts, weights.scales]
    return LinearKernel(
        getattr(code, run), getattr(code, scratch), weights.cols, weights.rows, tensors, sizes, bias
    )


def expand_bitmap(kernel: LinearKernel) -> Float[Tensor, "outputs inputs"]:
    """The float32 matrix of a kernel that `sparse_linear` made of a bitmap."""
    dense = torch.empty(kernel.outputs, kernel.inputs)
    library().expand_bitmap(kernel.address, dense.data_ptr(), torch.get_num_threads())
    return dense


@functools.cache
def library(isa: str | None = None) -> ctypes.CDLL:
    """The compiled code. Raises: NoCompiler; ValueError for an unknown instruction set."""
    if isa is not None and isa not in ISA_FLAGS:
        raise ValueError(
            f"isa={isa!r}; use one of {', '.join(map(repr, ISA_FLAGS))}, or None for all there is"
        )
    flags = ("-ffp-contract=fast", *ISA_FLAGS.get(isa or "", ()))
    code = load_library(Path(__file__).with_name("sparse_linear.c"), extra_flags=flags)
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    code.run_split.argtypes = [
        pointer, number, pointer, pointer, size, number, size, pointer, pointer, size
    ]  # fmt: skip
    code.run_split.restype = None
    code.expand_bitmap.argtypes, code.expand_bitmap.restype = [pointer, pointer, number], None
    code.rows_scratch_bytes.restype = code.tiles_scratch_bytes.restype = size
    code.rows_scratch_bytes.argtypes = code.tiles_scratch_bytes.argtypes = [pointer, size]
    return code
