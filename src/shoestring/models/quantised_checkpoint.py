"""Folders that another library has quantised (AWQ, GPTQ), seen as plain weights by transformers' names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from shoestring.errors import BadModelFile
from shoestring.layers.packed_linear import PackedWeight
from shoestring.models.mapped_file import shown
from shoestring.models.packed_import import AWQ_BITS, awq_weight, gptq_weight, order_of_groups
from shoestring.models.safetensors_file import SafetensorsFile, ShardedSafetensors

METHODS = ("awq", "gptq")
"""What `quant_method` may be."""
GPTQ_BITS = (2, 3, 4, 8)
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True)
class WordFormat:
    """What a `quantization_config` says of the words: method, width of a code, inputs of a group (−1: all).

    zeros_less_one: the first format of GPTQ.
    """

    method: str
    bits: int
    group_size: int
    zeros_less_one: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "WordFormat":
        """Raises: BadModelFile for a width, an order of nibbles or a variant that is not known here."""
        method = str(config.get("quant_method")).lower()
        bits = config.get("bits", config.get("w_bit"))
        group_size = config.get("group_size", config.get("q_group_size"))
        if not isinstance(group_size, int) or not (group_size == -1 or group_size > 0):
            raise BadModelFile(f"group_size is {shown(group_size)}, no number of inputs (or −1 for all)")
        if method == "awq":
            _check_awq(config, bits)
            return cls(method, AWQ_BITS, group_size)
        if bits not in GPTQ_BITS:
            raise BadModelFile(f"GPTQ codes of {shown(bits)} bits; known are {GPTQ_BITS}")
        if config.get("dynamic"):
            raise BadModelFile(
                "GPTQ with 'dynamic' gives layers formats of their own, which is not read here"
            )
        kind = str(config.get("checkpoint_format") or "gptq").lower()
        if kind not in ("gptq", "gptq_v2"):
            raise BadModelFile(
                f"checkpoint_format {shown(kind)} orders its words in a way not known here; save it as 'gptq'"
            )
        return cls(method, cast(int, bits), group_size, kind == "gptq")


def _check_awq(config: Mapping[str, Any], bits: Any) -> None:
    version = str(config.get("version") or "gemm").lower()
    if version != "gemm":
        raise BadModelFile(
            f"AWQ version {shown(version)} has another order of nibbles, not known here; save it as 'gemm', "
            "which packs outputs 0, 2, 4, 6, 1, 3, 5, 7 into a word"
        )
    if bits != AWQ_BITS:
        raise BadModelFile(f"AWQ codes of {shown(bits)} bits; the format has {AWQ_BITS}")


class QuantisedTensors:
    """The tensors of a folder; `X.qweight` and what belongs to it are seen as one matrix `X.weight`.

    Raises: BadModelFile where parts are missing, of another type, or of shapes that do not fit together.
    """

    def __init__(self, files: SafetensorsFile | ShardedSafetensors, words: WordFormat, path: Path) -> None:
        self._files, self.words, self.path = files, words, path
        self._layers = {name.removesuffix(".qweight") for name in files if name.endswith(".qweight")}
        self._shapes = {layer: self._check(layer) for layer in sorted(self._layers)}
        self._names = [n for n in files if not self._is_part(n)]
        self._names += [f"{layer}.weight" for layer in self._shapes]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name, self.dtype(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, (outputs, inputs) of a matrix."""
        layer = self._layer(name)
        return self._files.shape(name) if layer is None else self._shapes[layer]

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a tensor is kept; of a matrix, that of its scales."""
        layer = self._layer(name)
        return self._files.dtype(name if layer is None else f"{layer}.scales")

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor in any type; a matrix is dequantised."""
        if self._layer(name) is None:
            return self._files.read(name, dtype)
        order, matrix = self.column_order(name), self.packed(name).dequantise(dtype=dtype)
        return matrix if order is None else matrix[:, order.long().argsort()]

    def can_stay_packed(self, name: str) -> bool:
        """Whether a tensor is a quantised matrix."""
        return self._layer(name) is not None

    def column_order(self, name: str) -> Tensor | None:
        """The input that each column of `packed(name)` belongs to; None where they are in order."""
        part = f"{name.removesuffix('.weight')}.g_idx"
        if part not in self._files:
            return None
        groups = self._files.shape(part.replace("g_idx", "scales"))[0]
        try:
            return order_of_groups(self._files[part], groups, part)
        except ValueError as error:
            raise BadModelFile(f"{self.path}: {error}") from error

    def packed(self, name: str) -> PackedWeight:
        """A quantised matrix with its codes as they are. Raises: BadModelFile for scales not finite."""
        layer = name.removesuffix(".weight")
        words, zeros, scales = (self._files[f"{layer}.{part}"] for part in _PARTS[:3])
        try:
            if self.words.method == "awq":
                return awq_weight(words, zeros, scales)
            less_one, order = self.words.zeros_less_one, self.column_order(name)
            return gptq_weight(words, zeros, scales, self.words.bits, zeros_less_one=less_one, order=order)
        except ValueError as error:
            raise BadModelFile(f"{self.path}: {layer}: {error}") from error

    def _layer(self, name: str) -> str | None:
        layer = name.removesuffix(".weight")
        return layer if name.endswith(".weight") and layer in self._layers else None

    def _is_part(self, name: str) -> bool:
        layer, _, part = name.rpartition(".")
        return layer in self._layers and part in _PARTS

    def _check(self, layer: str) -> tuple[int, int]:
        """(outputs, inputs) of a layer whose parts fit together."""
        for part in _PARTS[:3]:
            if f"{layer}.{part}" not in self._files:
                raise BadModelFile(f"{self.path}: {shown(layer)} has a qweight but no {part}")
        for part, wanted in (("qweight", torch.int32), ("qzeros", torch.int32), ("scales", torch.float16)):
            held = self._files.dtype(f"{layer}.{part}")
            if held != wanted:
                raise BadModelFile(f"{self.path}: {layer}.{part} is {held}; these formats store {wanted}")
        down, outputs = self._files.shape(f"{layer}.qweight")[0], self._files.shape(f"{layer}.scales")[-1]
        bits = self.words.bits
        inputs = down if self.words.method == "awq" else down * 32 // bits
        group = inputs if self.words.group_size == -1 else self.words.group_size
        if inputs % group:
            raise BadModelFile(
                f"{self.path}: {layer} has {inputs} input features, which group_size={group} does not divide"
            )
        words = outputs * bits // 32
        expected = {
            "qweight": (inputs, words) if self.words.method == "awq" else (inputs * bits // 32, outputs),
            "qzeros": (inputs // group, words),
            "scales": (inputs // group, outputs),
        }
        for part, shape in expected.items():
            held_shape = self._files.shape(f"{layer}.{part}")
            if held_shape != shape or outputs * bits % 32:
                raise BadModelFile(f"{self.path}: {layer}.{part} is {held_shape} instead of {shape}")
        if f"{layer}.g_idx" in self._files and self._files.shape(f"{layer}.g_idx") != (inputs,):
            raise BadModelFile(
                f"{self.path}: {layer}.g_idx does not name a group for each of {inputs} inputs"
            )
        return outputs, inputs


def is_readable(config: Mapping[str, Any]) -> bool:
    """Whether a config.json says that its folder is quantised by one of `METHODS`."""
    quantised = config.get("quantization_config")
    return isinstance(quantised, dict) and str(quantised.get("quant_method")).lower() in METHODS
