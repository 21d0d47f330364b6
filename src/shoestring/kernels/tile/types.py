"""The element types of the tile machine: integers and floats of 1 to 8 bits, and the wide ones.

An element is a code, an unsigned number of `bits` bits; what it stands for is the business of
`shoestring.numbers`. In memory codes form a compact little-endian stream: element n fills the bits n·b ..
n·b + b − 1, so an element of up to 8 bits lies in at most two neighbouring bytes.

Source: Tilus (2025), section 5.
"""

import functools
import re
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Integer, Shaped, UInt8, UInt32

from shoestring.numbers.codes import decode, encode
from shoestring.numbers.formats import FORMATS, FloatFormat
from shoestring.numbers.integer import IntegerFormat
from shoestring.numbers.rounding import round_to_format

Format = FloatFormat | IntegerFormat
WIDE = ("f16", "bf16", "f32", "i32")


@dataclass(frozen=True)
class DataType:
    """An element type. `name`: i2..i8, u1..u8, f<bits>e<exponent>m<significand>, f16, bf16, f32, i32.

    `format`: what its codes stand for; None for i32, which stands for itself.
    """

    name: str
    bits: int
    format: Format | None

    @property
    def is_float(self) -> bool:
        return isinstance(self.format, FloatFormat)

    @property
    def is_unsigned(self) -> bool:
        return isinstance(self.format, IntegerFormat) and not self.format.symmetric

    @property
    def is_narrow(self) -> bool:
        """Of at most 8 bits: stored and cast, never computed with."""
        return self.bits <= 8

    @property
    def max_value(self) -> float:
        """Largest finite value."""
        if self.format is None:
            return float(2**31 - 1)
        return float(self.format.qmax if isinstance(self.format, IntegerFormat) else self.format.xmax)

    @property
    def min_value(self) -> float:
        """Smallest finite value: integers reach one further down than up."""
        if self.is_float:
            return -self.max_value
        return 0.0 if self.is_unsigned else -self.max_value - 1

    def decode(self, codes: Integer[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
        """The values of codes, exact: float32, or int32 for integer types."""
        if self.name == "f32":
            return codes.astype(np.uint32).view(np.float32)
        if self.format is None:
            return codes.astype(np.uint32).view(np.int32)
        if self.is_narrow:
            return self.values[codes]
        if self.name == "bf16":
            return (codes.astype(np.uint32) << 16).view(np.float32)
        return codes.astype(np.uint16).view(np.float16).astype(np.float32)

    def encode(self, values: Shaped[np.ndarray, "*shape"]) -> UInt32[np.ndarray, "*shape"]:
        """The codes of values rounded to this type, ties to even.

        Integers and floats of up to 8 bits saturate, wider floats overflow to infinity. A NaN becomes 0 where
        the type has none.
        """
        if self.is_float:
            return self._encode_floats(np.asarray(values, np.float32))
        with np.errstate(invalid="ignore"):
            whole = np.rint(np.nan_to_num(values.astype(np.float64), nan=0.0))
        whole = np.clip(whole, self.min_value, self.max_value).astype(np.int64)
        return (whole & ((1 << self.bits) - 1)).astype(np.uint32)

    def _encode_floats(self, values: Float[np.ndarray, "*shape"]) -> UInt32[np.ndarray, "*shape"]:
        if self.name == "f32":
            return np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
        if self.name == "f16":
            with np.errstate(over="ignore"):
                return values.astype(np.float16).view(np.uint16).astype(np.uint32)
        if (
            self.name == "bf16"
        ):  # the upper half of a float32; adding just under half, plus the last bit, rounds
            code = np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
            rounded = (code + 0x7FFF + (code >> 16 & 1)) >> 16
            return np.where(np.isnan(values), code >> 16 | 0x40, rounded).astype(np.uint32)
        assert isinstance(self.format, FloatFormat)
        if not self.format.has_nan:
            values = np.where(np.isnan(values), np.float32(0), values)
        return encode(np.asarray(round_to_format(values, self.format), np.float32), self.format).astype(
            np.uint32
        )

    @functools.cached_property
    def values(self) -> Shaped[np.ndarray, " codes"]:
        """The value of every code of a narrow type: the table that a cast looks up."""
        if not self.is_narrow or self.format is None:
            raise ValueError(f"{self.name} has too many codes for a table; decode it")
        return decode(np.arange(1 << self.bits), self.format)

    def __str__(self) -> str:
        return self.name


def data_type(name: str) -> DataType:
    """The type called `name`, such as "u4", "i6", "f6e3m2", "e4m3fn" or "bf16".

    Raises: ValueError saying which names there are.
    """
    wide = {"f16": FORMATS["fp16"], "bf16": FORMATS["bf16"], "f32": FORMATS["fp32"]}
    if name in wide:
        return DataType(name, wide[name].bits, wide[name])
    if name == "i32":
        return DataType(name, 32, None)
    if name in ("e4m3fn", "e5m2"):
        return DataType(name, 8, replace(FORMATS[name], saturate=True))
    integer = re.fullmatch(r"([iu])([1-8])", name)
    if integer and name != "i1":
        bits = int(integer[2])
        return DataType(name, bits, IntegerFormat(bits, symmetric=integer[1] == "i"))
    narrow = re.fullmatch(r"f([3-8])e([1-7])m([0-6])", name)
    if narrow and int(narrow[1]) == 1 + int(narrow[2]) + int(narrow[3]):
        fmt = FloatFormat(int(narrow[2]), int(narrow[3]), finite_only=True, saturate=True)
        return DataType(name, fmt.bits, fmt)
    raise ValueError(
        f"unknown element type {name!r}; there are i2..i8, u1..u8, f3..f8 written with their split such as "
        f"f6e3m2 (1 + 3 + 2 = 6 bits), e4m3fn, e5m2, {', '.join(WIDE)}"
    )


def all_narrow_types() -> list[DataType]:
    """Every integer and float type of at most 8 bits, those with special codes (e4m3fn, e5m2) too."""
    names = [f"u{b}" for b in range(1, 9)] + [f"i{b}" for b in range(2, 9)]
    names += [f"f{b}e{e}m{b - 1 - e}" for b in range(3, 9) for e in range(1, b)]
    return [data_type(name) for name in (*names, "e4m3fn", "e5m2")]


def naive_read_code(stream: bytes, n: int, bits: int) -> int:
    """Element n of a compact stream, the rule for scalar access to narrow types: two bytes at most.

    Take the byte of the first bit, shifted down; where the element runs on, or in the next byte, shifted up;
    mask. Slow, but right at every width and place.
    """
    byte, start = divmod(n * bits, 8)
    code = stream[byte] >> start
    if start + bits > 8:
        code |= stream[byte + 1] << (8 - start)
    return code & ((1 << bits) - 1)


def naive_write_code(stream: bytearray, n: int, bits: int, code: int) -> None:
    """Put `code` in place of element n of a compact stream; bits around it stay."""
    byte, start = divmod(n * bits, 8)
    mask = ((1 << bits) - 1) << start
    for offset in range(2 if start + bits > 8 else 1):
        part, kept = (code << start) >> (8 * offset), ~(mask >> (8 * offset))
        stream[byte + offset] = (stream[byte + offset] & kept & 0xFF) | (part & 0xFF)


def gather_codes(
    stream: UInt8[np.ndarray, " bytes"], elements: Integer[np.ndarray, "*shape"], bits: int
) -> UInt32[np.ndarray, "*shape"]:
    """The codes of `elements` of a compact stream, all at once."""
    if bits > 8:
        view = stream[: len(stream) // (bits // 8) * (bits // 8)].view(f"<u{bits // 8}")
        return view[elements].astype(np.uint32)
    first = elements * bits
    byte, start = first // 8, (first % 8).astype(np.uint32)
    after = np.minimum(byte + 1, len(stream) - 1)  # read but masked away where the element ends before
    both = stream[byte].astype(np.uint32) | stream[after].astype(np.uint32) << 8
    return (both >> start) & np.uint32((1 << bits) - 1)


def scatter_codes(
    stream: UInt8[np.ndarray, " bytes"],
    elements: Integer[np.ndarray, " n"],
    bits: int,
    codes: Integer[np.ndarray, " n"],
) -> None:
    """Write `codes` in place of `elements`, all different, of a compact stream; bits around them stay."""
    if bits > 8:
        view = stream[: len(stream) // (bits // 8) * (bits // 8)].view(f"<u{bits // 8}")
        view[elements] = codes.astype(view.dtype)
        return
    byte, start = elements * bits // 8, (elements * bits % 8).astype(np.uint32)
    mask = np.uint32((1 << bits) - 1) << start
    moved = codes.astype(np.uint32) << start
    for offset in range(2):
        here = (mask >> (8 * offset)) & 0xFF
        touched = here > 0
        at = (byte + offset)[touched]
        np.bitwise_and.at(stream, at, (~here[touched] & 0xFF).astype(np.uint8))
        np.bitwise_or.at(stream, at, ((moved >> (8 * offset)) & 0xFF)[touched].astype(np.uint8))


@functools.lru_cache(maxsize=256)
def cast_table(dtype: DataType) -> Float[np.ndarray, " codes"]:
    """float32 value of each of the 2^b codes of a narrow type: the reference of every back end's cast."""
    return dtype.values.astype(np.float32)
