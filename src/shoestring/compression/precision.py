"""Precisions in the short form of serving engines: "W4A16KV8" is 4-bit weights, 16-bit inputs, 8-bit cache.

Source: Efficient Mixed-Precision Large Language Model Inference with TurboMind (2025): WxAyKVz.
"""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from shoestring.compression.awq import AWQ
from shoestring.compression.float_quantize import FloatQuantize, StoredFloat
from shoestring.compression.group_quantize import RoundToNearest
from shoestring.compression.recipe import ModuleRecipe
from shoestring.kernels.grouped_linear import Activations
from shoestring.numbers.grouped_affine import ZeroPoint
from shoestring.numbers.token_cache_format import TokenCacheFormat

CACHE_BITS = (16, 8, 4)
_FORM = re.compile(
    r"W(?P<w>16|8|4|FP8|MXFP4)(?:A(?P<a>16|8))?"
    r"(?:KV(?P<kv>\d+)(?:-(?P<v2>\d+))?|K(?P<k>\d+)V(?P<v>\d+))?",
    re.IGNORECASE,
)
_EXPECTED = "W{16,8,4,fp8,mxfp4}A{16,8}KV{16,8,4}, such as W4A16KV8, or K8V4 for keys and values apart"


class WeightKind(enum.Enum):
    """How weights are stored."""

    FLOAT = "16"
    INT8 = "8"
    INT4 = "4"
    FP8 = "fp8"
    MXFP4 = "mxfp4"


@dataclass(frozen=True)
class Precision:
    """What weights, inputs of layers, keys and values take part in. Parts left out are 16.

    Raises: ValueError for bits that there are not.
    """

    weights: WeightKind = WeightKind.FLOAT
    activation_bits: int = 16
    key_bits: int = 16
    value_bits: int = 16

    def __post_init__(self) -> None:
        if self.activation_bits not in (16, 8):
            raise ValueError(f"activation_bits={self.activation_bits}; inputs take part in 16 or 8 bits.")
        for name, bits in (("key_bits", self.key_bits), ("value_bits", self.value_bits)):
            if bits not in CACHE_BITS:
                raise ValueError(f"{name}={bits}; keys and values are stored in 16, 8 or 4 bits.")

    @classmethod
    def parse(cls, text: str) -> "Precision":
        """Read "W4A16KV8", "W4A8K8V4", "W16KV8-4" (keys, then values). Raises: ValueError saying the form."""
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"precision {text!r} is not of the form {_EXPECTED}.")
        keys = found["kv"] or found["k"] or "16"
        values = found["v2"] or found["v"] or keys
        kind = WeightKind(found["w"].lower())
        return cls(kind, int(found["a"] or 16), int(keys), int(values))

    def __str__(self) -> str:
        same = self.key_bits == self.value_bits
        cache = f"KV{self.key_bits}" if same else f"K{self.key_bits}V{self.value_bits}"
        return f"W{self.weights.value}A{self.activation_bits}{cache}"

    def recipe(self, group_size: int = 128, *, search_scales: bool = False) -> ModuleRecipe | None:
        """What makes linear layers so, None where they stay as they are.

        group_size: inputs that share the scale of integer codes. search_scales: AWQ for 4 bits, which is for
        `apply_in_sequence`; else rounding to nearest.
        """
        if self.weights is WeightKind.FLOAT:
            return None
        if self.weights in (WeightKind.FP8, WeightKind.MXFP4):
            fp8 = self.weights is WeightKind.FP8
            return FloatQuantize(StoredFloat.E4M3 if fp8 else StoredFloat.MXFP4)
        if self.weights is WeightKind.INT8:
            return RoundToNearest(8, group_size)
        kind = AWQ if search_scales else RoundToNearest
        return kind(4, group_size, ZeroPoint.INTEGER)

    @property
    def activations(self) -> Activations:
        """In what the inputs of packed layers take part in the compiled step: int8, or as they are."""
        return Activations.INT8 if self.activation_bits == 8 else Activations.FLOAT32

    @property
    def cache_format(self) -> TokenCacheFormat | None:
        """The format of the KV cache; None where keys and values stay as they are."""
        if self.key_bits == self.value_bits == 16:
            return None
        return TokenCacheFormat(self.key_bits, self.value_bits)


@dataclass(frozen=True)
class PrecisionPlan:
    """A precision for a model, and weights of other precisions for some of its layers.

    overrides: {name or fnmatch pattern of a module: kind of weights}, as `apply` reads its mapping.
    """

    model: Precision
    overrides: Mapping[str, WeightKind] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def parse(cls, text: str) -> "PrecisionPlan":
        """Read "W4A16KV8; lm_head=W8; model.layers.0.*=W16".

        Raises: ValueError for a part of another form, or one layer named twice.
        """
        first, *rest = text.split(";")
        overrides: dict[str, WeightKind] = {}
        for part in rest:
            name, equals, kind = (piece.strip() for piece in part.partition("="))
            if not equals or not name or not re.fullmatch(r"W\w+", kind, re.IGNORECASE):
                raise ValueError(f"{part.strip()!r} is not of the form NAME=W{{16,8,4,fp8,mxfp4}}.")
            if name in overrides:
                raise ValueError(f"{name!r} is given a precision twice.")
            alone = re.fullmatch(r"W(16|8|4|fp8|mxfp4)", kind, re.IGNORECASE)
            if alone is None:
                raise ValueError(f"{part.strip()!r}: layers differ in their weights only, such as {name}=W8.")
            overrides[name] = Precision.parse(kind).weights
        return cls(Precision.parse(first), MappingProxyType(overrides))

    def recipes(
        self, group_size: int = 128, *, search_scales: bool = False
    ) -> dict[str, ModuleRecipe | None]:
        """The mapping for `apply`, or with `search_scales` for `apply_in_sequence`; the widest comes last."""
        found: dict[str, ModuleRecipe | None] = {}
        for name, kind in self.overrides.items():
            found[name] = Precision(kind).recipe(group_size, search_scales=search_scales)
        # Embeddings and heads, of which much of a small model consists, are named by hand.
        found["*_proj"] = self.model.recipe(group_size, search_scales=search_scales)
        return found
