"""A sparse matrix as one bit for each entry and the stored entries in a row, one after the other.

bits per entry = 1 + b (1 − s) for values of b bits at sparsity s: with 16-bit values smaller than dense from
s = 1/16 on, and smaller than pairs of value and position (32 bits) up to s = 15/16 ≈ 0.94.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int, Int32
from torch import Tensor

from shoestring.numbers.sparse_values import ValueKind, decode_values, encode_matrix

WORD = 32
"""Columns that share a word of the bitmap."""

STREAM_PADDING_BYTES = 64
"""Behind the last value: a kernel may load a whole vector wherever a value stands."""


@dataclass(frozen=True)
class BitmapMatrix:
    """A (rows, cols) matrix; the bytes are the same for every processor.

    masks: bit j of word w of a row says whether column 32 w + j is stored; bits beyond `cols` are 0.
    values: bit patterns of the stored entries, row after row, then 64 bytes of padding. row_starts: how many
    entries stand before each row, and in all. scales: of each row, where values are INT8.
    """

    rows: int
    cols: int
    kind: ValueKind
    masks: Int32[Tensor, "rows words"]
    values: Int[Tensor, " stored"]
    row_starts: Int32[Tensor, " rows_and_one"]
    scales: Float32[Tensor, " rows"] | None = None

    @classmethod
    def from_dense(
        cls, matrix: Tensor, kind: ValueKind = ValueKind.BFLOAT16, kept: Tensor | None = None
    ) -> "BitmapMatrix":
        """Store a floating (rows, cols) matrix, rounded to `kind`.

        kept: bool (rows, cols), what to store (zeros among it too); by default all that is not zero.
        Raises: as `encode_matrix`; ValueError for 2³¹ stored entries or more.
        """
        encoded = encode_matrix(matrix, kind, kept)
        rows, cols = matrix.shape
        counts = encoded.kept.sum(1)
        total = int(counts.sum())
        if total >= 2**31:
            raise ValueError(f"{total} stored entries do not fit 32-bit row starts; split the matrix by rows")
        starts = torch.zeros(rows + 1, dtype=torch.int32)
        starts[1:] = counts.cumsum(0)
        values = torch.zeros(total + stream_padding(kind), dtype=kind.bits_dtype)
        values[:total] = encoded.patterns[encoded.kept]
        return cls(rows, cols, kind, _pack_masks(encoded.kept), values, starts, encoded.scales)

    def to_dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The (rows, cols) matrix with zeros where nothing is stored."""
        kept = _unpack_masks(self.masks, self.cols)
        dense = torch.zeros(self.rows, self.cols)
        scale = None
        if self.scales is not None:
            scale = self.scales.repeat_interleave(self.row_starts.diff().long())
        dense[kept] = decode_values(self.values[: self.nonzeros], self.kind, scale)
        return dense.to(dtype)

    def kept(self) -> Tensor:
        """Which entries are stored, bool (rows, cols)."""
        return _unpack_masks(self.masks, self.cols)

    def check(self) -> None:
        """Raises: ValueError where masks, row starts and values contradict each other."""
        words = -(-self.cols // WORD)
        if self.masks.shape != (self.rows, words) or len(self.row_starts) != self.rows + 1:
            raise ValueError(
                f"masks {tuple(self.masks.shape)} and {len(self.row_starts)} row starts do not belong to a "
                f"{self.rows} x {self.cols} bitmap"
            )
        counts = torch.from_numpy(
            np.bitwise_count(self.masks.numpy().view(np.uint32)).astype(np.int64).sum(1)
        )
        if int(self.row_starts[0]) != 0 or not torch.equal(self.row_starts.diff().long(), counts):
            raise ValueError("the row starts of the bitmap are not those that its masks count")
        if self.cols % WORD and bool((self.masks[:, -1].long() & 0xFFFFFFFF >= 1 << self.cols % WORD).any()):
            raise ValueError(f"a mask of the bitmap has a bit beyond its {self.cols} columns")
        if len(self.values) != self.nonzeros + stream_padding(self.kind):
            raise ValueError(
                f"{len(self.values)} values; {self.nonzeros} stored entries and the padding take "
                f"{self.nonzeros + stream_padding(self.kind)}"
            )

    @property
    def nonzeros(self) -> int:
        """Stored entries."""
        return int(self.row_starts[-1])

    @property
    def sparsity(self) -> float:
        """Share of the entries that are not stored."""
        return 1 - self.nonzeros / max(self.rows * self.cols, 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return bitmap_bytes(self.rows, self.cols, self.nonzeros, self.kind)


def bitmap_bytes(rows: int, cols: int, nonzeros: int, kind: ValueKind = ValueKind.BFLOAT16) -> int:
    """Bytes of a `BitmapMatrix`: masks, values, row starts, scales of INT8, and the padding of the stream."""
    words = -(-cols // WORD)
    scales = 4 * rows if kind is ValueKind.INT8 else 0
    return 4 * rows * words + kind.itemsize * nonzeros + 4 * (rows + 1) + scales + STREAM_PADDING_BYTES


def bitmap_bits_per_entry(sparsity: float | int, kind: ValueKind = ValueKind.BFLOAT16) -> float:
    """1 + b (1 − s): what a large matrix whose columns fill whole words takes, row starts apart."""
    return 1 + 8 * kind.itemsize * (1 - sparsity)


def stream_padding(kind: ValueKind) -> int:
    """Values behind the last one."""
    return STREAM_PADDING_BYTES // kind.itemsize


def _pack_masks(kept: Tensor) -> Tensor:
    rows, cols = kept.shape
    words = -(-cols // WORD)
    octets = np.packbits(kept.numpy(), axis=1, bitorder="little")
    padded = np.zeros((rows, 4 * words), dtype=np.uint8)
    padded[:, : octets.shape[1]] = octets
    return torch.from_numpy(padded.view("<i4").astype(np.int32, copy=False).reshape(rows, words))


def _unpack_masks(masks: Tensor, cols: int) -> Tensor:
    octets = masks.contiguous().numpy().astype("<i4", copy=False).view(np.uint8)
    octets = octets.reshape(len(masks), 4 * masks.shape[1])
    bits = np.unpackbits(octets, axis=1, bitorder="little")[:, :cols]
    return torch.from_numpy(bits.astype(np.bool_))
