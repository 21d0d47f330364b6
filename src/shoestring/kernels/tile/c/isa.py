"""What a C back end says about an instruction set; everything else of the renderer is common to all.

The vocabulary of vectors (`vf_add`, `vi_shr`, …) is a C header beside this file. Python chooses what depends
on an element type: how a code becomes a float, and how a field is cut out across two words.
"""

from abc import ABC, abstractmethod
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

    @abstractmethod
    def decoder(self, dtype: DataType) -> list[str]:
        """Statements that return the float values of the narrow codes `code`; bits above a code are noise."""


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


def arithmetic_decoder(dtype: DataType) -> list[str]:
    """Without a table: mask or sign-extend and convert, or put the exponent in its place and rescale."""
    bits = dtype.bits
    if not isinstance(dtype.format, FloatFormat):
        if dtype.is_unsigned:
            return [f"return vf_from_int(vi_and(code, vi_set1({(1 << bits) - 1})));"]
        return [f"return vf_from_int(vi_sar(vi_shl(code, {32 - bits}), {32 - bits}));"]
    exponent, scale = dtype.format.exp_bits, 2.0 ** (127 - dtype.format.bias)
    lines = [
        f"vi top = vi_shl(code, {32 - bits}); /* sign, exponent and significand at the upper end */",
        "vi magnitude = vi_and(top, vi_set1(0x7fffffff));",
        f"vf value = vf_mul(vi_as_float(vi_shr(magnitude, {8 - exponent})), vf_set1({literal(scale)}));",
    ]
    inner = "vf_bits(value)"
    finite = np.isfinite(cast_table(dtype)[: 1 << (bits - 1)])
    if not finite.all():
        limit = int(np.argmin(finite)) << (32 - bits)
        infinite = f"vi_or_where({inner}, magnitude, {limit:#x}, 0x7f800000)"
        lines.append(f"value = vi_as_float({infinite}); /* infinities and NaNs */")
    lines.append(f"return vi_as_float(vi_or({inner}, vi_and(top, vi_set1(0x80000000))));")
    return lines
