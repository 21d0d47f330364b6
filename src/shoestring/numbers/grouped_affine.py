"""Grouped affine storage: k-bit codes with one scale (and zero) per group of consecutive columns.

The weight of a linear map, rows = outputs and columns = inputs, is stored as w = scale·(q − zero) + offset
with one (scale, zero, offset) per row and group. Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K of GGUF are
members, the latter with the products of their two levels of scales.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", eq. 1; codes of scales: Dettmers et al. 2023, "QLoRA", section 3 (double quantisation).
"""

import enum
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from shoestring.numbers.packing import pack_bits, packed_bytes, unpack_bits


class ZeroPoint(enum.Enum):
    """What is stored beside the scale of a group."""

    SYMMETRIC = "symmetric"
    """Nothing: the code 2^(bits−1) means zero."""
    INTEGER = "integer"
    """The code that means zero, an unsigned number of `bits` bits."""
    REAL = "real"
    """An offset in the type of the scales, float16 or float32: w = scale·q + offset."""


@dataclass(frozen=True)
class AffineGrid:
    """What the codes of each group mean: w = scale·(q − zero) + offset, in values that a format stores.

    scale, zero, offset: (rows, groups) float32. `multiplier` (rows,) is there when the scales are stored as
    codes: scale = multiplier·(code + 1) / 2^scale_bits.
    """

    scale: Float[Tensor, "rows groups"]
    zero: Float[Tensor, "rows groups"]
    offset: Float[Tensor, "rows groups"]
    multiplier: Float[Tensor, " rows"] | None = None


@dataclass(frozen=True)
class GroupedAffine:
    """A storage format for weight matrices (rows = outputs, columns = inputs); see the module's equation.

    bits: width of a code, 2 to 8. group_size: consecutive columns that share a scale; it must divide the
    columns. zero_point: what is stored beside the scale. scale_bits: 32 or 16 (a float per group)
    or 8 or 6 (unsigned codes per group and one float16 multiplier per row).

    Raises: ValueError for a width or a group that does not exist.
    """

    bits: int = 4
    group_size: int = 32
    zero_point: ZeroPoint = ZeroPoint.SYMMETRIC
    scale_bits: int = 16

    def __post_init__(self) -> None:
        if not isinstance(self.zero_point, ZeroPoint):
            raise TypeError(
                f"zero_point={self.zero_point!r} is not a ZeroPoint; use one of {list(ZeroPoint)}."
            )
        if self.bits not in range(2, 9):
            raise ValueError(f"bits={self.bits} is not a width of a code; use 2 to 8.")
        if self.group_size < 1:
            raise ValueError(f"group_size={self.group_size} is not a number of columns; use 1 or more.")
        if self.scale_bits not in (6, 8, 16, 32):
            raise ValueError(f"scale_bits={self.scale_bits} is not a width of a scale; use 32, 16, 8 or 6.")

    @property
    def levels(self) -> int:
        """How many values a code can take."""
        return 1 << self.bits

    @property
    def scale_type(self) -> torch.dtype | None:
        """The type of a stored scale; None where scales are codes."""
        return {16: torch.float16, 32: torch.float32}.get(self.scale_bits)

    @property
    def offset_type(self) -> torch.dtype:
        """The type of a stored offset."""
        return self.scale_type or torch.float16

    def why_not(self, name: str, cols: int) -> str | None:
        """The reason why a matrix called `name` with `cols` columns cannot be stored so, or None."""
        if cols % self.group_size == 0:
            return None
        divisors = [d for d in range(1, cols + 1) if cols % d == 0]
        below = [d for d in divisors if d < self.group_size][-1:]
        above = [d for d in divisors if d > self.group_size][:1]
        advice = " or ".join(str(d) for d in below + above)
        size = self.group_size
        return f"{name!r} has {cols} input features, which group_size={size} does not divide; use {advice}."

    def groups(self, cols: int, name: str = "weight") -> int:
        """Groups per row of a matrix with `cols` columns. Raises: ValueError if they do not divide evenly."""
        if reason := self.why_not(name, cols):
            raise ValueError(reason)
        return cols // self.group_size

    def tensors(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name, shape and type of every stored tensor of a (rows, cols) matrix."""
        groups = self.groups(cols)
        stored: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "codes": ((rows, packed_bytes(cols, self.bits)), torch.uint8)
        }
        if self.scale_type is not None:
            stored["scales"] = ((rows, groups), self.scale_type)
        else:
            stored["scales"] = ((rows, packed_bytes(groups, self.scale_bits)), torch.uint8)
            stored["scale_multiplier"] = ((rows,), torch.float16)
        if self.zero_point is ZeroPoint.INTEGER:
            stored["zeros"] = ((rows, packed_bytes(groups, self.bits)), torch.uint8)
        elif self.zero_point is ZeroPoint.REAL:
            stored["offsets"] = ((rows, groups), self.offset_type)
        return stored

    def nbytes(self, rows: int, cols: int) -> int:
        """Bytes of all stored tensors of a (rows, cols) matrix."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.tensors(rows, cols).values())

    def row_multiplier(self, scale: Float[Tensor, "rows groups"]) -> Float[Tensor, " rows"] | None:
        """The float16 multiplier that lets the scale codes of each row reach its largest scale.

        None where scales are floats themselves. Raises: ValueError if a scale is beyond float16.
        """
        if self.scale_type is not None:
            return None
        largest = scale.float().amax(dim=1)
        nearest = largest.half()
        # No code exceeds the multiplier itself: it must not lie below the largest scale.
        up = torch.where(nearest.float() < largest, _next_half(nearest), nearest)
        least = torch.finfo(torch.float16).smallest_normal
        return _stored(up.clamp(min=least), torch.float16, "a scale")

    def represent(
        self,
        scale: Float[Tensor, "rows groups"],
        shift: Float[Tensor, "rows groups"],
        multiplier: Float[Tensor, " rows"] | None = None,
    ) -> AffineGrid:
        """The nearest grid that this format stores exactly.

        shift: the wanted offset (REAL) or the wanted zero in units of codes (INTEGER; ignored for SYMMETRIC).
        multiplier: what `row_multiplier` gave, to keep the one of an earlier fit; by default it is taken from
        `scale`. Raises: ValueError if a scale or an offset is beyond the type that stores it.
        """
        scale = scale.float()
        if self.scale_type is not None:
            scale, multiplier = _stored(scale, self.scale_type, "a scale"), None
        else:
            multiplier = self.row_multiplier(scale) if multiplier is None else multiplier
            assert multiplier is not None
            step = multiplier[:, None] / (1 << self.scale_bits)
            scale = (scale / step).round().clamp(1, 1 << self.scale_bits) * step
        nothing = torch.zeros_like(scale)
        if self.zero_point is ZeroPoint.REAL:
            offset = _stored(shift, self.offset_type, "an offset")
            return AffineGrid(scale, nothing, offset, multiplier)
        if self.zero_point is ZeroPoint.INTEGER:
            return AffineGrid(scale, shift.float().round().clamp(0, self.levels - 1), nothing, multiplier)
        return AffineGrid(scale, torch.full_like(scale, self.levels // 2), nothing, multiplier)

    def encode(self, weight: Float[Tensor, "rows cols"], grid: AffineGrid) -> UInt8[Tensor, "rows cols"]:
        """The nearest code of every weight on a given grid (ties to the even code)."""
        rows, cols = weight.shape
        grouped = weight.float().reshape(rows, self.groups(cols), self.group_size)
        scale = grid.scale[..., None]
        inverse = torch.where(scale == 0, 0.0, 1.0 / scale)
        codes = ((grouped - grid.offset[..., None]) * inverse + grid.zero[..., None]).round()
        return codes.clamp(0, self.levels - 1).to(torch.uint8).reshape(rows, cols)

    def decode(self, codes: UInt8[Tensor, "rows cols"], grid: AffineGrid) -> Float[Tensor, "rows cols"]:
        """The weights that unpacked codes stand for, float32, differentiable in the grid."""
        rows, cols = codes.shape
        grouped = codes.reshape(rows, self.groups(cols), self.group_size).float()
        weight = grid.scale[..., None] * (grouped - grid.zero[..., None]) + grid.offset[..., None]
        return weight.reshape(rows, cols)

    def nearest(self, weight: Float[Tensor, "rows cols"], grid: AffineGrid) -> Float[Tensor, "rows cols"]:
        """What `decode` gives for the codes of `encode`, float32, without making the codes."""
        rows, cols = weight.shape
        grouped = weight.float().reshape(rows, self.groups(cols), self.group_size)
        scale, zero, offset = grid.scale[..., None], grid.zero[..., None], grid.offset[..., None]
        inverse = torch.where(scale == 0, 0.0, 1.0 / scale)
        codes = (grouped - offset).mul_(inverse).add_(zero).round_().clamp_(0, self.levels - 1)
        return codes.sub_(zero).mul_(scale).add_(offset).reshape(rows, cols)

    def store(self, codes: UInt8[Tensor, "rows cols"], grid: AffineGrid) -> dict[str, Tensor]:
        """Pack codes and a grid into the tensors that `tensors` lists; nothing is rounded any further."""
        stored = {"codes": pack_bits(codes, self.bits)}
        if self.scale_type is not None:
            stored["scales"] = grid.scale.to(self.scale_type)
        else:
            assert grid.multiplier is not None
            steps = grid.scale / (grid.multiplier[:, None] / (1 << self.scale_bits))
            stored["scales"] = pack_bits((steps.round() - 1).to(torch.uint8), self.scale_bits)
            stored["scale_multiplier"] = grid.multiplier.half()
        if self.zero_point is ZeroPoint.INTEGER:
            stored["zeros"] = pack_bits(grid.zero.to(torch.uint8), self.bits)
        elif self.zero_point is ZeroPoint.REAL:
            stored["offsets"] = grid.offset.to(self.offset_type)
        return stored

    def grid(self, stored: dict[str, Tensor], cols: int) -> AffineGrid:
        """Read the grid back from the stored tensors of a matrix with `cols` columns."""
        groups, multiplier = self.groups(cols), None
        if self.scale_type is not None:
            scale = stored["scales"].float()
        else:
            multiplier = stored["scale_multiplier"].float()
            codes = unpack_bits(stored["scales"], self.scale_bits, groups).float() + 1
            scale = codes * (multiplier[:, None] / (1 << self.scale_bits))
        zero, offset = torch.zeros_like(scale), torch.zeros_like(scale)
        if self.zero_point is ZeroPoint.INTEGER:
            zero = unpack_bits(stored["zeros"], self.bits, groups).float()
        elif self.zero_point is ZeroPoint.SYMMETRIC:
            zero = torch.full_like(scale, self.levels // 2)
        else:
            offset = stored["offsets"].float()
        return AffineGrid(scale, zero, offset, multiplier)

    def dequantise(self, stored: dict[str, Tensor], cols: int) -> Float[Tensor, "rows cols"]:
        """The matrix that stored tensors stand for, float32."""
        return self.decode(unpack_bits(stored["codes"], self.bits, cols), self.grid(stored, cols))


def naive_dequantise(form: GroupedAffine, stored: dict[str, Tensor], cols: int) -> Float[Tensor, "rows cols"]:
    """The stored matrix read bit by bit, one weight after the other: the meaning of the format."""

    def number(row: Tensor, index: int, bits: int) -> int:
        stream = int.from_bytes(bytes(row.tolist()), "little")
        return (stream >> (index * bits)) & ((1 << bits) - 1)

    rows = stored["codes"].shape[0]
    weight = torch.empty(rows, cols, device="cpu")
    for r in range(rows):
        for c in range(cols):
            g, q = c // form.group_size, number(stored["codes"][r], c, form.bits)
            if form.scale_bits >= 16:
                scale = stored["scales"][r, g].item()
            else:
                code = number(stored["scales"][r], g, form.scale_bits)
                scale = stored["scale_multiplier"][r].item() * (code + 1) / 2**form.scale_bits
            if form.zero_point is ZeroPoint.SYMMETRIC:
                weight[r, c] = scale * (q - 2 ** (form.bits - 1))
            elif form.zero_point is ZeroPoint.INTEGER:
                weight[r, c] = scale * (q - number(stored["zeros"][r], g, form.bits))
            else:
                weight[r, c] = scale * q + stored["offsets"][r, g].item()
    return weight


def _next_half(value: Tensor) -> Tensor:
    """The next float16 above a non-negative one."""
    return (value.view(torch.int16) + 1).view(torch.float16)


def _stored(value: Tensor, dtype: torch.dtype, what: str) -> Float[Tensor, "..."]:
    """What is left of a value that is stored in this type, float32."""
    kept = value.to(dtype).float()
    if not torch.isfinite(kept).all():
        largest = torch.finfo(dtype).max
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{what} is not finite or beyond ±{largest:g}, the range of {kind}; check the weights for NaN."
        )
    return kept
