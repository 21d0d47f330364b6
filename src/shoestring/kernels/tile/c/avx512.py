"""Instruction selection for AVX-512: tables of 16 and 32 floats in registers, funnel shifts."""

from shoestring.kernels.tile.c.byte_parts import byte_parts
from shoestring.kernels.tile.c.isa import (
    Bias,
    Isa,
    arithmetic_decoder,
    integer_bias,
    sign_is_at_top,
    table_of,
)
from shoestring.kernels.tile.c.pairs import brain_table, is_brain
from shoestring.kernels.tile.types import DataType


class Avx512(Isa):
    """AVX-512 F, BW, DQ and VL; `vbmi2`: with the funnel shift of VBMI2; `vnni`: with that, the byte shuffles
    of VBMI and products of bytes."""

    header = "avx512.h"
    lanes = 16

    def __init__(self, *, vbmi2: bool, vnni: bool = False) -> None:
        self.vbmi2, self.vnni = vbmi2 or vnni, vnni
        self.name = "avx512vnni" if vnni else "avx512" if vbmi2 else "avx512f"
        features = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
        if self.vbmi2:
            features.add("avx512_vbmi2")
        if vnni:
            features |= {"avx512vbmi", "avx512_vnni"}
        self.features = frozenset(features)

    def multiplies_bytes(self, dtype: DataType) -> bool:
        return self.vnni and (dtype.bits <= 6 or not dtype.is_float) and byte_parts(dtype) is not None

    def spread(self, word: str, start: int, bits: int) -> str:
        if bits == 8:
            return word
        places = [start + bits * i for i in range(4)]  # of the even lane of 64 bits, then of the odd one
        control = sum(
            (place + 32 * odd) << 8 * (4 * odd + i) for odd in (0, 1) for i, place in enumerate(places)
        )
        return f"_mm512_multishift_epi64_epi8(_mm512_set1_epi64({control:#x}), {word})"

    def masked_bytes(self, fields: str, bits: int, *, flip_sign: bool) -> str:
        keep, flip = 0x01010101 * ((1 << bits) - 1), 0x01010101 << (bits - 1)
        if flip_sign:
            return f"vi_and_xor({fields}, {keep:#x}, {flip:#x})"
        return f"vi_and({fields}, vi_set1({keep:#x}))" if bits < 8 else fields

    def byte_look_up(self, fields: str, table: str) -> str:
        return f"_mm512_permutexvar_epi8({fields}, _mm512_loadu_si512({table}))"

    def funnel(self, low: str, high: str, shift: int) -> str:
        if self.vbmi2:
            return f"_mm512_shrdi_epi32({low}, {high}, {shift})"
        return f"vi_or(vi_shr({low}, {shift}), vi_shl({high}, {32 - shift}))"

    def funnel_halves(self, low: str, high: str, shift: int) -> str:
        if self.vbmi2:
            return f"_mm512_shrdi_epi16({low}, {high}, {shift})"
        return f"vi_or(vi_shr_halves({low}, {shift}), _mm512_slli_epi16({high}, {16 - shift}))"

    def pair_decoder(self, dtype: DataType) -> list[str] | None:
        if dtype.bits != 6 or not is_brain(dtype):
            return None
        halves = "_mm512_loadu_si512(values), code, _mm512_loadu_si512(values + 32)"
        return [brain_table(dtype, "values"), f"return _mm512_permutex2var_epi16({halves});"]

    def bias(self, dtype: DataType) -> Bias | None:
        return integer_bias(dtype) if dtype.bits > 5 and not dtype.is_float else None  # others: a table

    def decodes_from_top(self, dtype: DataType) -> bool:
        return dtype.bits > (6 if dtype.is_float else 5) and sign_is_at_top(dtype)

    def decoder(self, dtype: DataType) -> list[str]:
        if dtype.bits <= 4:  # only the low four bits of an index count: the table is repeated up to 16
            look_up = "_mm512_permutexvar_ps(code, _mm512_loadu_ps(values))"
            return [table_of(dtype, "values", 16), f"return {look_up};"]
        if dtype.bits == 5:
            halves = "_mm512_loadu_ps(values), code, _mm512_loadu_ps(values + 16)"
            return [table_of(dtype, "values"), f"return _mm512_permutex2var_ps({halves});"]
        if dtype.bits == 6 and dtype.is_float:  # a table of magnitudes, of which none is a slow subnormal
            halves = "_mm512_loadu_ps(values), code, _mm512_loadu_ps(values + 16)"
            sign = "vi_shl(code, 26), vi_set1(0x80000000), 0xf8 /* a | b & c */"
            return [
                table_of(dtype, "values", 32),
                f"const vi magnitude = vf_bits(_mm512_permutex2var_ps({halves}));",
                f"return vi_as_float(_mm512_ternarylogic_epi32(magnitude, {sign}));",
            ]
        return arithmetic_decoder(dtype)
