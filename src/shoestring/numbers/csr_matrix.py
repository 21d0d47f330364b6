"""Compressed sparse rows: a column number and a value for each stored entry."""

from dataclasses import dataclass

import torch
from jaxtyping import Int, Int32
from torch import Tensor

from shoestring.numbers.sparse_values import ValueKind, decode_values, encode_matrix

NARROW_COLUMNS = 1 << 16
"""Up to so many columns their numbers take 16 bits, beyond 32."""


@dataclass(frozen=True)
class CsrMatrix:
    """A (rows, cols) matrix. columns: of the stored entries, ascending in each row; 16-bit patterns or int32.

    values: bit patterns (16-bit floats). row_starts: entries before each row, and in all.
    """

    rows: int
    cols: int
    kind: ValueKind
    columns: Int[Tensor, " stored"]
    values: Int[Tensor, " stored"]
    row_starts: Int32[Tensor, " rows_and_one"]

    @classmethod
    def from_dense(cls, matrix: Tensor, kind: ValueKind = ValueKind.BFLOAT16) -> "CsrMatrix":
        """Store what is not zero of a floating (rows, cols) matrix, rounded to `kind`.

        Raises: as `encode_matrix`; ValueError for INT8, or 2³¹ stored entries or more.
        """
        if kind is ValueKind.INT8:
            raise ValueError("CSR stores 16-bit floats; use bfloat16 or float16 (or the bitmap for int8)")
        encoded = encode_matrix(matrix, kind)
        row, column = encoded.kept.nonzero(as_tuple=True)
        if len(row) >= 2**31:
            raise ValueError(f"{len(row)} stored entries do not fit 32-bit row starts; split the matrix")
        starts = torch.zeros(matrix.shape[0] + 1, dtype=torch.int32)
        starts[1:] = torch.bincount(row, minlength=matrix.shape[0]).cumsum(0)
        narrow = matrix.shape[1] <= NARROW_COLUMNS
        columns = column.to(torch.int32)
        if narrow:
            columns = columns.to(torch.int16)  # wraps around: the bit pattern of the unsigned number
        rows, cols = matrix.shape
        return cls(rows, cols, kind, columns, encoded.patterns[encoded.kept], starts)

    def column_numbers(self) -> Int[Tensor, " stored"]:
        """The columns as int64."""
        return self.columns.long() & (NARROW_COLUMNS - 1 if self.columns.dtype == torch.int16 else 2**31 - 1)

    def to_dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The (rows, cols) matrix."""
        dense = torch.zeros(self.rows, self.cols)
        row = torch.arange(self.rows).repeat_interleave(self.row_starts.diff().long())
        dense[row, self.column_numbers()] = decode_values(self.values, self.kind)
        return dense.to(dtype)

    @property
    def nonzeros(self) -> int:
        """Stored entries."""
        return int(self.row_starts[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return self.columns.nbytes + self.values.nbytes + self.row_starts.nbytes
