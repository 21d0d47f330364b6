"""OCP microscaling (MX): blocks of narrow elements under one power-of-two scale.

Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5 and 6.3.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from jaxtyping import Float, Integer, Shaped, UInt8
from torch import Tensor

from shoestring.numbers.blocks import join_blocks, split_blocks
from shoestring.numbers.codes import decode, encode
from shoestring.numbers.fixed_point import FixedPointFormat
from shoestring.numbers.formats import FORMATS, FloatFormat
from shoestring.numbers.rounding import round_to_format


@dataclass(frozen=True)
class MicroscalingFormat:
    """Elements of a float format, or of Q(2, 6) for MXINT8, in blocks of `block_size` under a scale.

    `scale_bits`: width w of the scale's code, a biased exponent from −(2^(w−1) − 1) to 2^(w−1) − 1, all ones
    for NaN.

    Raises: ValueError for a block or scale of impossible size, or an element wider than 16 bits.
    """

    element: FloatFormat | FixedPointFormat
    block_size: int = 32
    scale_bits: int = 8

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size={self.block_size}: at least 1")
        if not 2 <= self.scale_bits <= 8:
            raise ValueError(f"scale_bits={self.scale_bits}: 2 to 8")
        if self.element.bits > 16:
            raise ValueError(f"an element of {self.element.bits} bits; microscaling packs up to 16")
        if isinstance(self.element, FloatFormat):
            if not self.element.signed:
                raise ValueError("elements need a sign; a format of scales cannot be one")
            object.__setattr__(self, "element", replace(self.element, saturate=True))

    @property
    def scale(self) -> FloatFormat:
        """The format of scales: E8M0 at 8 bits."""
        width = self.scale_bits
        return FloatFormat(width, 0, finite_only=True, nan_code=(1 << width) - 1, signed=False)

    @property
    def element_emax(self) -> int:
        """Exponent of the largest element."""
        return self.element.emax if isinstance(self.element, FloatFormat) else self.element.int_bits - 2

    @property
    def bits_per_value(self) -> float:
        return self.element.bits + self.scale_bits / self.block_size


MX_FORMATS: Mapping[str, MicroscalingFormat] = MappingProxyType(
    {
        "mxfp8_e5m2": MicroscalingFormat(FORMATS["e5m2"]),
        "mxfp8_e4m3": MicroscalingFormat(FORMATS["e4m3fn"]),
        "mxfp6_e3m2": MicroscalingFormat(FORMATS["e3m2"]),
        "mxfp6_e2m3": MicroscalingFormat(FORMATS["e2m3"]),
        "mxfp4": MicroscalingFormat(FORMATS["e2m1"]),
        "mxint8": MicroscalingFormat(FixedPointFormat(2, 6)),
    }
)


def quantize_mx(
    x: Shaped[Tensor, "..."], fmt: MicroscalingFormat, *, pad: bool = False
) -> tuple[Integer[Tensor, "*rows blocks size"], UInt8[Tensor, "*rows blocks"]]:
    """Element codes (uint8, or int32 above 8 bits) and scale codes (uint8) of blocks along the last axis.

    The scale is 2^(floor(log2 max|x|) − emax of the element), within the scale's range; elements are x/scale
    rounded to nearest even and saturated. An all-zero block takes the least scale; a block that holds NaN or
    infinity the NaN scale, with codes 0.

    Raises: as `split_blocks`.
    """
    elements, scales = _scaled_elements(split_blocks(x, fmt.block_size, pad), fmt)
    return encode(elements, fmt.element), encode(scales, fmt.scale)


def dequantize_mx(
    codes: Integer[Tensor, "*rows blocks size"],
    scale_codes: UInt8[Tensor, "*rows blocks"],
    fmt: MicroscalingFormat,
) -> Float[Tensor, "*rows blocks size"]:
    """Element times scale, float64; NaN throughout a block whose scale is NaN."""
    return decode(codes, fmt.element).double() * decode(scale_codes, fmt.scale).double()[..., None]


def round_to_mx(
    x: Shaped[Tensor, "..."], fmt: MicroscalingFormat, *, pad: bool = False
) -> Float[Tensor, "..."]:
    """The values that `quantize_mx` keeps; same dtype and shape as `x`.

    Raises: as `split_blocks`.
    """
    elements, scales = _scaled_elements(split_blocks(x, fmt.block_size, pad), fmt)
    return join_blocks(elements * scales[..., None], x.shape[-1]).to(x.dtype)


def _scaled_elements(blocks: Tensor, fmt: MicroscalingFormat) -> tuple[Tensor, Tensor]:
    """Rounded elements and scales, both float64: power-of-two scaling is exact there for float32 blocks."""
    blocks = blocks.double()
    valid = torch.isfinite(blocks).all(-1)
    blocks = torch.where(valid[..., None], blocks, torch.zeros_like(blocks))
    _, exponent = torch.frexp(blocks.abs().amax(-1))
    limit = (1 << (fmt.scale_bits - 1)) - 1
    exponent = (exponent - 1 - fmt.element_emax).clamp(-limit, limit)
    exponent = torch.where((blocks == 0).all(-1), -limit, exponent)
    elements = _round_elements(torch.ldexp(blocks, -exponent[..., None]), fmt.element)
    scales = torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent)
    return elements, torch.where(valid, scales, torch.nan)


def _round_elements(x: Tensor, element: FloatFormat | FixedPointFormat) -> Tensor:
    if isinstance(element, FloatFormat):
        return round_to_format(x, element)
    unit = element.resolution
    return ((x / unit).round() * unit).clamp(element.xmin, element.xmax)
