"""Instruction selection for AVX2: tables of 8 and 16 floats in registers, arithmetic for wider codes."""

from shoestring.kernels.tile.c.isa import Isa, arithmetic_decoder, sign_is_at_top, table_of
from shoestring.kernels.tile.types import DataType


class Avx2(Isa):
    """AVX2 with FMA and F16C."""

    name = "avx2"
    header = "avx2.h"
    features = frozenset({"avx2", "fma", "f16c"})
    lanes = 8

    def funnel(self, low: str, high: str, shift: int) -> str:
        return f"vi_or(vi_shr({low}, {shift}), vi_shl({high}, {32 - shift}))"

    def decodes_from_top(self, dtype: DataType) -> bool:
        return dtype.bits > 4 and sign_is_at_top(dtype)

    def decoder(self, dtype: DataType) -> list[str]:
        look_up = "_mm256_permutevar8x32_ps(_mm256_loadu_ps(values{}), code)"
        if dtype.bits <= 3:  # only the low three bits of an index count
            return [table_of(dtype, "values", 8), f"return {look_up.format('')};"]
        if dtype.bits == 4:
            upper = "vi_as_float(vi_shl(code, 28)) /* bit 3 as sign */"
            blend = f"_mm256_blendv_ps({look_up.format('')}, {look_up.format(' + 8')}, {upper})"
            return [table_of(dtype, "values"), f"return {blend};"]
        return arithmetic_decoder(dtype)
