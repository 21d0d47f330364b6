"""Weights as codes of a narrow float under a scale for each block of the matrix: e4m3 by 128 x 128, MXFP4.

w = scale of the block · value of the code. Source: OCP 8-bit Floating Point Specification 1.0 (e4m3); OCP
Microscaling Formats (MX) Specification 1.0, section 5 (MXFP4); DeepSeek-AI 2024, "DeepSeek-V3 Technical
Report", section 3.3 (blocks of 128 x 128 with float32 scales).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.numbers.codes import decode, encode
from shoestring.numbers.formats import FloatFormat, named_format
from shoestring.numbers.packing import pack_bits, packed_bytes, unpack_bits
from shoestring.numbers.rounding import round_to_format

_E8M0 = named_format("e8m0")


@dataclass(frozen=True)
class BlockFloat:
    """A storage format for weight matrices (rows = outputs, columns = inputs).

    element: name of a float format of at most 8 bits. block_rows, block_cols: of a block; those at the edges
    may be cut short. power_scales: scales are powers of two, one byte each (E8M0), as in MX formats, whose
    blocks are whole along the columns; else float32.

    Raises: ValueError for an element that is too wide, or a block below 1.
    """

    element: str
    block_rows: int
    block_cols: int
    power_scales: bool = False

    def __post_init__(self) -> None:
        if self.format.bits > 8:
            raise ValueError(
                f"element={self.element!r} has {self.format.bits} bits; at most 8 are stored so."
            )
        if min(self.block_rows, self.block_cols) < 1:
            raise ValueError(f"a block of {self.block_rows} x {self.block_cols}; both are 1 or more.")

    @property
    def format(self) -> FloatFormat:
        """Of an element."""
        return named_format(self.element)

    def why_not(self, name: str, cols: int) -> str | None:
        """The reason why a matrix with `cols` columns cannot be stored so, or None."""
        if not self.power_scales or cols % self.block_cols == 0:
            return None
        return f"{name!r} has {cols} input features, which blocks of {self.block_cols} do not divide."

    def grid(self, rows: int, cols: int) -> tuple[int, int]:
        """Blocks along rows and columns. Raises: ValueError as `why_not` says."""
        if reason := self.why_not("weight", cols):
            raise ValueError(reason)
        return -(-rows // self.block_rows), -(-cols // self.block_cols)

    def tensors(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name, shape and type of every stored tensor of a (rows, cols) matrix."""
        scales = torch.uint8 if self.power_scales else torch.float32
        return {
            "codes": ((rows, packed_bytes(cols, self.format.bits)), torch.uint8),
            "scales": (self.grid(rows, cols), scales),
        }

    def nbytes(self, rows: int, cols: int) -> int:
        """Bytes of all stored tensors of a (rows, cols) matrix."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.tensors(rows, cols).values())

    def store(self, weight: Float[Tensor, "rows cols"], name: str = "weight") -> dict[str, Tensor]:
        """Round a matrix to the nearest of what the format holds, ties to even.

        The largest of a block becomes the largest element (float32 scales), or the scale is the power of two
        of the MX specification, section 6.3. Raises: ValueError for a weight that is not finite.
        """
        weight = weight.detach().float()
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(f"{name!r} holds NaN or infinity; no scale covers it.")
        largest = self._largest(weight)
        if self.power_scales:
            _, exponent = torch.frexp(largest)
            exponent = (exponent - 1 - self.format.emax).clamp(-_E8M0.emax, _E8M0.emax)
            scales = torch.where(
                largest == 0, 2.0**-_E8M0.emax, torch.ldexp(torch.ones_like(largest), exponent)
            )
            kept = encode(scales.double(), _E8M0)
        else:
            # A block of zeros: any scale does.
            kept = scales = torch.where(largest == 0, 1.0, largest / self.format.xmax)
        ratio = weight.double() / self._spread(scales.double(), *weight.shape)
        limit = self.format.xmax
        elements = round_to_format(ratio.clamp(-limit, limit), self.format)
        return {"codes": pack_bits(encode(elements, self.format), self.format.bits), "scales": kept}

    def scale_values(self, stored: dict[str, Tensor]) -> Float[Tensor, "block_rows block_cols"]:
        """The scales as float32."""
        return decode(stored["scales"], _E8M0) if self.power_scales else stored["scales"]

    def dequantise(
        self, stored: dict[str, Tensor], cols: int, rows: slice = slice(None)
    ) -> Float[Tensor, "chosen cols"]:
        """Some rows of the matrix, float32. rows: begins at a multiple of `block_rows`."""
        codes = unpack_bits(stored["codes"][rows], self.format.bits, cols)
        first = (rows.start or 0) // self.block_rows
        scales = self.scale_values(stored)[first : first + -(-len(codes) // self.block_rows)]
        return decode(codes, self.format) * self._spread(scales, *codes.shape)

    def row_scales(
        self, stored: dict[str, Tensor], rows: int, cols: int, group: int
    ) -> Float[Tensor, "rows groups"]:
        """A scale for every row and every `group` columns, of which a block has a whole number."""
        scales = self.scale_values(stored).repeat_interleave(self.block_rows, 0)[:rows]
        return scales.repeat_interleave(self.block_cols // group, 1)[:, : cols // group]

    def _largest(self, weight: Tensor) -> Float[Tensor, "block_rows block_cols"]:
        down, across = self.grid(*weight.shape)
        missing = (0, across * self.block_cols - weight.shape[1], 0, down * self.block_rows - weight.shape[0])
        padded = torch.nn.functional.pad(weight.abs(), missing)
        return padded.view(down, self.block_rows, across, self.block_cols).amax((1, 3))

    def _spread(self, scales: Tensor, rows: int, cols: int) -> Float[Tensor, "rows cols"]:
        wide = scales.repeat_interleave(self.block_rows, 0)[:rows]
        return wide.repeat_interleave(self.block_cols, 1)[:, :cols]


E4M3_BLOCKS = BlockFloat("e4m3fn", 128, 128)
MXFP4 = BlockFloat("e2m1", 1, 32, power_scales=True)


def naive_dequantise_blocks(
    form: BlockFloat, stored: dict[str, Tensor], cols: int
) -> Float[Tensor, "rows cols"]:
    """One weight after the other: the meaning of the format."""
    codes = unpack_bits(stored["codes"], form.format.bits, cols)
    values, scales = decode(codes, form.format).double(), form.scale_values(stored).double()
    weight = torch.empty(codes.shape, dtype=torch.float64)
    for r in range(codes.shape[0]):
        for c in range(cols):
            weight[r, c] = values[r, c] * scales[r // form.block_rows, c // form.block_cols]
    return weight.float()
