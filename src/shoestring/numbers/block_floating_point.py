"""Block floating point: a block of elements shares one exponent, each keeps a two's-complement mantissa.

Source: Köster et al. 2017, "Flexpoint"; Darvish Rouhani et al. 2020, "Pushing the Limits of Narrow Precision
Inferencing at Cloud Scale with Microsoft Floating Point", section 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from shoestring.numbers.blocks import join_blocks, split_blocks


@dataclass(frozen=True)
class BlockFloatFormat:
    """`mantissa_bits` (p, sign counted) for each of `block_size` elements, one exponent of `exponent_bits`.

    Raises: ValueError naming the field out of range.
    """

    mantissa_bits: int
    block_size: int
    exponent_bits: int = 8

    def __post_init__(self) -> None:
        if not 2 <= self.mantissa_bits <= 16:
            raise ValueError(f"mantissa_bits={self.mantissa_bits}: 2 to 16, the sign counted")
        if self.block_size < 1:
            raise ValueError(f"block_size={self.block_size}: at least 1")
        if not 2 <= self.exponent_bits <= 8:
            raise ValueError(f"exponent_bits={self.exponent_bits}: 2 to 8")

    @property
    def exponents(self) -> tuple[int, int]:
        """Least and greatest shared exponent."""
        half = 1 << (self.exponent_bits - 1)
        return 1 - half, half

    @property
    def bits_per_value(self) -> float:
        return self.mantissa_bits + self.exponent_bits / self.block_size


BLOCK_FLOAT_FORMATS: Mapping[str, BlockFloatFormat] = MappingProxyType(
    {
        "bfp16": BlockFloatFormat(16, 16),
        "bfp12": BlockFloatFormat(12, 16),
        "bfp8": BlockFloatFormat(8, 32),
        "bfp6": BlockFloatFormat(6, 32),
        "bfp4": BlockFloatFormat(4, 32),
        "bfp3": BlockFloatFormat(3, 64),
        "bfp2": BlockFloatFormat(2, 128),
        "flexpoint16": BlockFloatFormat(16, 16, exponent_bits=5),
        "flexpoint8": BlockFloatFormat(8, 32, exponent_bits=5),
    }
)


def quantize_blocks(
    x: Shaped[Tensor, "..."], fmt: BlockFloatFormat, *, pad: bool = False
) -> tuple[Int[Tensor, "*rows blocks size"], Int[Tensor, "*rows blocks"]]:
    """Mantissas q and shared exponents X (int32) of blocks along the last axis: x ≈ q · 2^(X − p + 1).

    X is the least integer with max|x| · 2^(p−1) ≤ (2^(p−1) − 1) · 2^X, within the exponent's range; an
    all-zero block has the least X there is. q = clip(rint(x · 2^(p−1−X)), −2^(p−1), 2^(p−1) − 1).

    Raises: ValueError for NaN or infinity, for which there is no code, and as `split_blocks`.
    """
    blocks = split_blocks(x, fmt.block_size, pad)
    if not bool(torch.isfinite(blocks).all()):
        raise ValueError("a block holds NaN or infinity, which block floating point has no code for")
    return _quantize(blocks.double(), fmt)


def round_to_blocks(
    x: Shaped[Tensor, "..."], fmt: BlockFloatFormat, *, pad: bool = False
) -> Float[Tensor, "..."]:
    """The values that `quantize_blocks` keeps; NaN stays NaN, infinities clamp to the range of their block.

    Raises: as `split_blocks`.
    """
    blocks = split_blocks(x, fmt.block_size, pad).double()
    finite = torch.where(torch.isfinite(blocks), blocks, torch.zeros_like(blocks))
    _, exponents = _quantize(finite, fmt)
    mantissas = _mantissas(blocks.nan_to_num(), exponents, fmt)
    values = dequantize_blocks(mantissas, exponents, fmt)
    values = torch.where(torch.isnan(blocks), blocks, values)
    return join_blocks(values, x.shape[-1]).to(x.dtype)


def dequantize_blocks(
    mantissas: Int[Tensor, "*rows blocks size"], exponents: Int[Tensor, "*rows blocks"], fmt: BlockFloatFormat
) -> Float[Tensor, "*rows blocks size"]:
    """q · 2^(X − p + 1), float64."""
    return torch.ldexp(mantissas.double(), exponents[..., None] - (fmt.mantissa_bits - 1))


def _quantize(blocks: Tensor, fmt: BlockFloatFormat) -> tuple[Tensor, Tensor]:
    largest = blocks.abs().amax(-1)
    fraction, exponents = torch.frexp(largest)
    half = 1 << (fmt.mantissa_bits - 1)
    exponents = exponents + (fraction > (half - 1) / half).int()
    least, greatest = fmt.exponents
    exponents = torch.where(largest == 0, least, exponents.clamp(least, greatest)).int()
    return _mantissas(blocks, exponents, fmt), exponents


def _mantissas(blocks: Tensor, exponents: Tensor, fmt: BlockFloatFormat) -> Tensor:
    half = 1 << (fmt.mantissa_bits - 1)
    scaled = torch.ldexp(blocks, (fmt.mantissa_bits - 1) - exponents[..., None])
    return scaled.round().clamp(-half, half - 1).int()


def naive_round_block(values: list[float], fmt: BlockFloatFormat) -> list[float]:
    """One block of finite numbers, by the definition, in exact rational arithmetic."""
    half = 2 ** (fmt.mantissa_bits - 1)
    largest = max(abs(Fraction(value)) for value in values)
    exponent, greatest = fmt.exponents
    while exponent < greatest and largest * half > (half - 1) * Fraction(2) ** exponent:
        exponent += 1
    unit = Fraction(2) ** exponent / half
    return [float(min(max(round(Fraction(value) / unit), -half), half - 1) * unit) for value in values]
