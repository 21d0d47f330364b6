"""Floating-point formats: which numbers a given count of exponent and significand bits can hold.

Source: IEEE 754-2019, section 3; OCP 8-bit Floating Point Specification 1.0 (E4M3, E5M2); OCP Microscaling
Formats 1.0, section 5 (E3M2, E2M3, E2M1, E8M0).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

MAX_EXP_BITS = 11
MAX_SIG_BITS = 52


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format: value = (-1)^s · f · 2^E, 1 ≤ f < 2, or f < 1 at E = emin (subnormal).

    `exp_bits`: width of the exponent field (1..11). `sig_bits`: stored significand bits (0..52), the hidden
    one not counted. `subnormal=False`: values below `xmin` are flushed. `saturate=True`: finite overflow
    gives ±xmax in every rounding mode. `finite_only=True`: the top exponent holds numbers, there is no
    infinity (None: exactly when a `nan_code` is given). `nan_code`: the magnitude code of NaN in a
    finite-only format; only the all-ones code is in use anywhere; None there means that the format cannot
    hold a NaN. `signed=False`: a format of scales such as E8M0: powers of two only, no sign, no zero.

    Raises: ValueError naming the field and its limit.
    """

    exp_bits: int
    sig_bits: int
    subnormal: bool = True
    saturate: bool = False
    finite_only: bool | None = None
    nan_code: int | None = None
    signed: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.exp_bits <= MAX_EXP_BITS:
            raise ValueError(
                f"exp_bits={self.exp_bits}: a float format has 1 to {MAX_EXP_BITS} exponent bits"
            )
        if not 0 <= self.sig_bits <= MAX_SIG_BITS:
            raise ValueError(
                f"sig_bits={self.sig_bits}: between 0 and {MAX_SIG_BITS} are possible, because the widest "
                f"carrier, float64, has t = {MAX_SIG_BITS + 1} bits of precision"
            )
        if self.finite_only is None:
            object.__setattr__(self, "finite_only", self.nan_code is not None)
        self._check_codes()

    def _check_codes(self) -> None:
        top = (1 << (self.exp_bits + self.sig_bits)) - 1
        if self.nan_code is not None:
            if not self.finite_only:
                raise ValueError(
                    f"nan_code={self.nan_code} needs finite_only=True: IEEE-style NaNs are implied"
                )
            if self.nan_code != top:
                raise ValueError(f"nan_code={self.nan_code}: the code of NaN is the all-ones code, {top:#x}")
        if not self.signed and (self.sig_bits != 0 or self.nan_code is None):
            raise ValueError("signed=False is for scales: it needs sig_bits=0 and a nan_code (as E8M0 has)")
        if self.finite_only and self.signed and self.exp_bits == MAX_EXP_BITS:
            raise ValueError(
                "exp_bits=11 with finite_only=True reaches 2^1024, more than float64 holds; use 10"
            )
        if self._top_code < (1 if self.subnormal else 1 << self.sig_bits):
            raise ValueError(f"{self} has no finite value but zero; add an exponent or a significand bit")

    @classmethod
    def from_precision(
        cls, t: int, emax: int, *, subnormal: bool = True, saturate: bool = False
    ) -> "FloatFormat":
        """The IEEE-style format of precision `t` (hidden bit counted) and largest exponent `emax` = 2^k − 1.

        Raises: ValueError where no exponent field has that emax.
        """
        exp_bits = (emax + 1).bit_length()
        if emax < 0 or emax != (1 << (exp_bits - 1)) - 1:
            raise ValueError(
                f"emax={emax} is not 2^(exp_bits-1) - 1 for any exp_bits; use 1, 3, 7, 15, 31, ..."
            )
        return cls(exp_bits, t - 1, subnormal=subnormal, saturate=saturate)

    @property
    def precision(self) -> int:
        """t: significand bits, the hidden one counted."""
        return self.sig_bits + 1

    @property
    def unit_roundoff(self) -> float:
        """u = 2^-t: the largest relative error of rounding to nearest in the normal range."""
        return math.ldexp(1.0, -self.precision)

    @property
    def bits(self) -> int:
        """Width of a code, the sign bit counted."""
        return self.signed + self.exp_bits + self.sig_bits

    @property
    def bias(self) -> int:
        """What is added to an exponent to give its field: 2^(exp_bits-1) − 1."""
        return (1 << (self.exp_bits - 1)) - 1

    @property
    def emin(self) -> int:
        """Exponent of the smallest normal number."""
        return 1 - self.bias if self.signed else -self.bias

    @property
    def emax(self) -> int:
        """Largest exponent: the bias, and one more where the top exponent field holds numbers."""
        return self.bias + 1 if self.finite_only and self.signed else self.bias

    @property
    def xmin(self) -> float:
        """Smallest positive normal number."""
        return math.ldexp(1.0, self.emin)

    @property
    def xmins(self) -> float:
        """Smallest positive subnormal number, whether or not `subnormal` lets it be used."""
        return math.ldexp(1.0, self.emin - self.sig_bits)

    @property
    def xmax(self) -> float:
        """Largest finite number."""
        if not self.signed:
            return math.ldexp(1.0, self.emax)
        field, significand = self._top_code >> self.sig_bits, self._top_code & ((1 << self.sig_bits) - 1)
        if field == 0:
            return math.ldexp(significand, self.emin - self.sig_bits)
        return math.ldexp((1 << self.sig_bits) + significand, field - self.bias - self.sig_bits)

    @property
    def has_infinity(self) -> bool:
        return not self.finite_only

    @property
    def has_nan(self) -> bool:
        """Whether a code stands for NaN; with sig_bits=0 an IEEE-style format has room for ∞ alone."""
        return self.nan_code is not None or (self.has_infinity and self.sig_bits > 0)

    @property
    def saturates(self) -> bool:
        """Whether finite overflow gives ±xmax in every mode: asked for, or there is nothing else to give."""
        return self.saturate or not (self.has_infinity or self.has_nan)

    @property
    def _top_code(self) -> int:
        """Magnitude code of the largest finite number."""
        if self.has_infinity:
            return (((1 << self.exp_bits) - 1) << self.sig_bits) - 1
        return (1 << (self.exp_bits + self.sig_bits)) - (1 if self.nan_code is None else 2)


def _presets() -> dict[str, FloatFormat]:
    e4m3_ieee, e5m2 = FloatFormat(4, 3), FloatFormat(5, 2)
    half, bfloat16 = FloatFormat(5, 10), FloatFormat(8, 7)
    single, double = FloatFormat(8, 23), FloatFormat(11, 52)
    return {
        "e2m1": FloatFormat(2, 1, finite_only=True),
        "e2m3": FloatFormat(2, 3, finite_only=True),
        "e3m2": FloatFormat(3, 2, finite_only=True),
        "e4m3_ieee": e4m3_ieee,
        "e4m3fn": FloatFormat(4, 3, finite_only=True, nan_code=0x7F),
        "e5m2": e5m2,
        "e8m0": FloatFormat(8, 0, finite_only=True, nan_code=0xFF, signed=False),
        "q43": e4m3_ieee,
        "fp8-e4m3": e4m3_ieee,
        "q52": e5m2,
        "fp8-e5m2": e5m2,
        "fp16": half,
        "half": half,
        "bf16": bfloat16,
        "bfloat16": bfloat16,
        "tf32": FloatFormat(8, 10),
        "fp32": single,
        "single": single,
        "fp64": double,
        "double": double,
    }


FORMATS: Mapping[str, FloatFormat] = MappingProxyType(_presets())
"""Formats by name. `e4m3_ieee` (alias `q43`, `fp8-e4m3`) ends at 240 and has infinities, `e4m3fn` at 448."""


def named_format(name: str) -> FloatFormat:
    """The preset called `name`.

    Raises: ValueError listing the names there are.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown number format {name!r}; the named ones are {', '.join(FORMATS)}")
    return FORMATS[name]
