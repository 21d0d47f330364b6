"""What a C back end says about an instruction set; everything else of the renderer is common to all.

The vocabulary of vectors (`vf_add`, `vi_shr`, …) is a C header beside this file. Python chooses what depends
on an element type: how a code becomes a float, and how a field is cut out across two words.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shoestring.kernels.tile.types import DataType, cast_table
from shoestring.numbers.formats import FloatFormat

FOLDER = Path(__file__).parent


class Isa(ABC):
    """One instruction set. `features`: the flags of a processor that has it."""

    name: str
    header: str
    features: frozenset[str]
    lanes: int | None
    """Lanes of 32 bits in a vector; None: as many as the program's groups have threads."""
    flags: tuple[str, ...] = ()
    """For the compiler, beside the common ones."""

    def preamble(self, lanes: int) -> str:
        """The C text that defines the vocabulary."""
        parts = ("prelude.h", self.header, "lanewise.h")
        text = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in parts)
        return f"#define LANES {lanes}\n{text}"

    @abstractmethod
    def funnel(self, low: str, high: str, shift: int) -> str:
        """The words low, high shifted right by `shift` bits as one, of which the low word."""

    def funnel_halves(self, low: str, high: str, shift: int) -> str:
        """`funnel` for each 16-bit half by itself."""
        raise NotImplementedError(f"{self.name} decodes no pairs")

    def pair_decoder(self, dtype: DataType) -> list[str] | None:
        """Statements that return the bfloat16 values of the codes at the low ends of both halves of `code`;
        None where one code at a time is no slower."""
        return None

    def bias(self, dtype: DataType) -> "Bias | None":
        """How codes become floats without a conversion, all too large by the same; None where that is no
        faster than their values."""
        return None

    def multiplies_bytes(self, dtype: DataType) -> bool:
        """Whether codes of `dtype` become bytes, of which one instruction multiplies four to a lane."""
        return False

    def spread(self, word: str, start: int, bits: int) -> str:
        """The four codes from bit `start` of each lane on at the low ends of its bytes, below noise."""
        raise NotImplementedError(f"{self.name} multiplies no bytes")

    def masked_bytes(self, fields: str, bits: int, *, flip_sign: bool) -> str:
        """Bytes without the noise of `spread`; flip_sign: with the top bit of each code changed."""
        raise NotImplementedError(f"{self.name} multiplies no bytes")

    def byte_look_up(self, fields: str, table: str) -> str:
        """The entries of a table of 64 bytes that `spread` codes, with their noise, name."""
        raise NotImplementedError(f"{self.name} multiplies no bytes")

    @abstractmethod
    def decodes_from_top(self, dtype: DataType) -> bool:
        """Whether the decoder wants a code at the high end of a word, noise below; else noise is above it."""

    @abstractmethod
    def decoder(self, dtype: DataType) -> list[str]:
        """Statements that return the float values of the narrow codes `code`."""


@dataclass(frozen=True)
class Bias:
    """A code at bit `at` of a word is the lowest part of the significand of a float: of the word, what `keep`
    has, with the bits of `flip` changed. The float is the value of the code plus `surplus`."""

    at: int
    keep: int
    flip: int
    surplus: float


def integer_bias(dtype: DataType) -> Bias:
    """Of an integer of at most 8 bits: in a float from 256 to 512, bit 15 counts one."""
    sign = 0 if dtype.is_unsigned else 1 << (dtype.bits - 1)
    return Bias(15, ((1 << dtype.bits) - 1) << 15, 0x43800000 | sign << 15, 256.0 + sign)


def literal(value: float) -> str:
    """A float constant of C."""
    if np.isnan(value):
        return "NAN"
    if np.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    return f"{float(value).hex()}f"


def table_of(dtype: DataType, name: str, count: int | None = None) -> str:
    """A static table of the values of all codes, repeated up to `count` entries."""
    values = cast_table(dtype)
    values = np.resize(values, count or len(values))
    return f"static const float {name}[{len(values)}] = {{{', '.join(map(literal, values.tolist()))}}};"


def sign_is_at_top(dtype: DataType) -> bool:
    """Whether `arithmetic_decoder` shifts the sign down from the high end of a word."""
    return not dtype.is_unsigned


def arithmetic_decoder(dtype: DataType) -> list[str]:
    """Without a table: mask or sign-extend and convert, or put the exponent in its place and rescale.

    The code of a type with a sign is at the high end of its word (`sign_is_at_top`). Shifted down with its
    sign, a float's code has the fields of a float32 but for copies of the sign, which a mask removes.
    """
    bits = dtype.bits
    if not isinstance(dtype.format, FloatFormat):
        if dtype.is_unsigned:
            return [f"return vf_from_int(vi_and(code, vi_set1({(1 << bits) - 1})));"]
        return [f"return vf_from_int(vi_sar(code, {32 - bits}));"]
    exponent, scale = dtype.format.exp_bits, 2.0 ** (127 - dtype.format.bias)
    fields = 0x80000000 | ((1 << (bits - 1)) - 1) << (24 - bits + exponent)
    lines = [
        f"vi placed = vi_and(vi_sar(code, {8 - exponent}), vi_set1({fields:#x}u));",
        f"vf value = vf_mul(vi_as_float(placed), vf_set1({literal(scale)}));",
    ]
    finite = np.isfinite(cast_table(dtype)[: 1 << (bits - 1)])
    if finite.all():
        return [*lines, "return value;"]
    limit = int(np.argmin(finite)) << (24 - bits + exponent)
    infinite = f"vi_or_where(vf_bits(value), vi_and(placed, vi_set1(0x7fffffff)), {limit:#x}, 0x7f800000)"
    return [*lines, f"return vi_as_float({infinite}); /* infinities and NaNs */"]
