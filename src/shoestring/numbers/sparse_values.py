"""The values of a sparse matrix as they are stored: 16-bit floats, or 8-bit integers with a scale per row."""

import enum
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor


class ValueKind(enum.Enum):
    """What a stored value is."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"
    """A whole number from −127 to 127, times the scale of its row."""

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return 1 if self is ValueKind.INT8 else 2

    @property
    def bits_dtype(self) -> torch.dtype:
        """The integer type in which the bit patterns are kept: `.to(dtype)` of a model leaves it alone."""
        return torch.int8 if self is ValueKind.INT8 else torch.int16

    @property
    def float_dtype(self) -> torch.dtype:
        """The floating type of the values; float32 for integers, whose scales are in it."""
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self.value, torch.float32)


@dataclass(frozen=True)
class EncodedMatrix:
    """A matrix whose entries are encoded, and which of them are to be stored.

    patterns: (rows, cols) in `kind.bits_dtype`. kept: what is stored. scales: per row, for INT8 only.
    """

    kind: ValueKind
    patterns: Int[Tensor, "rows cols"]
    kept: Bool[Tensor, "rows cols"]
    scales: Float32[Tensor, " rows"] | None


def encode_matrix(matrix: Tensor, kind: ValueKind, kept: Tensor | None = None) -> EncodedMatrix:
    """Encode a floating (rows, cols) matrix; `kept` (bool) says what to store, by default all but zeros.

    A stored −0.0 becomes 0. Raises: TypeError for another type; ValueError for another number of dimensions,
    entries that are not finite or that `kind` cannot hold, or a mask of another shape.
    """
    check_matrix(matrix)
    if kept is not None and (kept.shape != matrix.shape or kept.dtype != torch.bool):
        raise ValueError(
            f"kept is {kept.dtype} of shape {tuple(kept.shape)}; give a bool for each entry of "
            f"{tuple(matrix.shape)}"
        )
    matrix = matrix.detach()
    if kept is not None:
        matrix = torch.where(kept, matrix, 0)
    scales = None
    if kind is ValueKind.INT8:
        values = matrix.float()
        scales = values.abs().amax(1) / 127 if matrix.shape[1] else values.new_zeros(len(values))
        safe = torch.where(scales > 0, scales, 1.0)
        patterns = (values / safe[:, None]).round().clamp(-127, 127).to(torch.int8)
        nonzero = patterns != 0
    else:
        values = matrix.to(kind.float_dtype)
        if not torch.isfinite(values).all():
            raise ValueError(f"an entry of the matrix exceeds what {kind.value} can hold; use bfloat16")
        nonzero = values != 0
        patterns = torch.where(nonzero, values, 0).contiguous().view(torch.int16)
    return EncodedMatrix(kind, patterns, nonzero if kept is None else kept, scales)


def check_matrix(matrix: Tensor) -> None:
    """Raises: TypeError for a matrix that is not floating; ValueError for one not 2-D or not finite."""
    if not matrix.is_floating_point():
        raise TypeError(f"the matrix is {matrix.dtype}; give float32, bfloat16 or float16")
    if matrix.dim() != 2:
        raise ValueError(f"the matrix has shape {tuple(matrix.shape)}; give one of two dimensions")
    if not torch.isfinite(matrix).all():
        raise ValueError("the matrix holds NaN or infinite values; clean it before it is stored sparsely")


def decode_values(
    patterns: Int[Tensor, " count"], kind: ValueKind, scale_of_each: Float[Tensor, " count"] | None = None
) -> Float[Tensor, " count"]:
    """The float32 values of bit patterns; INT8 needs the scale of each."""
    if kind is ValueKind.INT8:
        assert scale_of_each is not None
        return patterns.float() * scale_of_each
    return patterns.view(kind.float_dtype).float()
