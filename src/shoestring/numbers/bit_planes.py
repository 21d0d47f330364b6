"""Symmetric codes in two planes: the high bits, enough for most uses, and low bits that are read on demand.

step = max|x| / (2^(M+L−1) − 1) over a row;  code = clamp(round(x / step), −2^(M+L−1), 2^(M+L−1) − 1), in
two's complement;  msb = code >> L;  lsb = code & (2^L − 1). The msb alone: x ≈ step · (msb << L), rounded
down; `mid` adds half of what the low bits can be.

Source: Wang et al. 2021, "SpAtten", section III-D. The step is of one row, in float16 and rounded up, so that
no later row makes old planes wrong; `mid` is our own.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float16, Int, UInt8
from torch import Tensor

from shoestring.numbers.packing import MAX_BITS, pack_bits, packed_bytes, unpack_bits

STEP_BITS = 16


@dataclass(frozen=True)
class BitPlanes:
    """How many high and low bits a code has.

    Raises: ValueError for msb_bits below 2, lsb_bits below 0, or more than 16 together.
    """

    msb_bits: int = 6
    lsb_bits: int = 4

    def __post_init__(self) -> None:
        if self.msb_bits < 2:
            raise ValueError(f"msb_bits={self.msb_bits} must be 2 or more: one is the sign.")
        if self.lsb_bits < 0:
            raise ValueError(f"lsb_bits={self.lsb_bits} must be 0 or more.")
        if self.bits > MAX_BITS:
            raise ValueError(f"msb_bits + lsb_bits is {self.bits}; codes have at most {MAX_BITS} bits.")

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.msb_bits + self.lsb_bits

    def split(self, codes: Int[Tensor, "*n"]) -> tuple[Int[Tensor, "*n"], Int[Tensor, "*n"]]:
        """Signed high bits and unsigned low bits."""
        return codes >> self.lsb_bits, codes & ((1 << self.lsb_bits) - 1)

    def join(self, msb: Int[Tensor, "*n"], lsb: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """The codes of both planes."""
        return (msb << self.lsb_bits) | lsb

    def coarse(self, msb: Int[Tensor, "*n"], *, mid: bool = False) -> Int[Tensor, "*n"]:
        """What the high bits alone stand for; mid: in the middle of what the low bits can be."""
        return (msb << self.lsb_bits) + (1 << self.lsb_bits >> 1 if mid and self.lsb_bits else 0)

    def pack(self, codes: Int[Tensor, "*n dim"]) -> tuple[UInt8[Tensor, "*n m"], UInt8[Tensor, "*n l"]]:
        """Both planes, packed row by row; high bits are stored from 0 on."""
        msb, lsb = self.split(codes)
        high = pack_bits(msb + (1 << (self.msb_bits - 1)), self.msb_bits)
        low = pack_bits(lsb, self.lsb_bits) if self.lsb_bits else high[..., :0]
        return high, low

    def unpack_msb(self, high: UInt8[Tensor, "*n m"], dim: int) -> Int[Tensor, "*n dim"]:
        """The signed high bits of rows of `dim` codes."""
        return unpack_bits(high, self.msb_bits, dim).int() - (1 << (self.msb_bits - 1))

    def unpack(
        self, high: UInt8[Tensor, "*n m"], low: UInt8[Tensor, "*n l"], dim: int
    ) -> Int[Tensor, "*n dim"]:
        """The codes of rows of `dim`."""
        msb = self.unpack_msb(high, dim)
        return self.join(msb, unpack_bits(low, self.lsb_bits, dim).int()) if self.lsb_bits else msb

    def plane_bytes(self, dim: int) -> tuple[int, int]:
        """Bytes of a row of `dim` codes in either plane."""
        low = packed_bytes(dim, self.lsb_bits) if self.lsb_bits else 0
        return packed_bytes(dim, self.msb_bits), low


def encode_symmetric(
    x: Float[Tensor, "*rows dim"], bits: int, name: str = "values"
) -> tuple[Int[Tensor, "*rows dim"], Float16[Tensor, "*rows"]]:
    """Codes of every row, and its step; ties go to the even code. name: of x, for messages.

    Raises: ValueError for bits outside 2..16, or values that are not finite or have a step beyond float16.
    """
    if not 2 <= bits <= MAX_BITS:
        raise ValueError(f"bits={bits} of {name} must be from 2 to {MAX_BITS}.")
    x = x.float()
    most = x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(*x.shape[:-1], 1)
    top = (1 << (bits - 1)) - 1
    exact = most / top
    step = exact.half()
    step = torch.where(step.float() < exact, torch.nextafter(step, torch.full_like(step, torch.inf)), step)
    if not bool(torch.isfinite(step).all()):
        raise ValueError(
            f"{name} hold NaN, infinite values or some beyond {65504 * top:g}; check the weights."
        )
    codes = (x / torch.where(step == 0, 1.0, step.float())).round().clamp(-top - 1, top).int()
    return codes, step[..., 0]


def naive_symmetric_code(x: float, step: float, bits: int) -> int:
    """One code: the meaning of `encode_symmetric`."""
    top = 2 ** (bits - 1)
    return min(top - 1, max(-top, round(x / step))) if step else 0
