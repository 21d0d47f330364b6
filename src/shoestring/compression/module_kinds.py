"""Kinds of rewritten linear layers: what a document says of one, what it stores, how it is made again.

A recipe that brings a new module adds its kind here. Packed layers, which may be tied, are in
`module_formats`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import nn

from shoestring.layers.dual_binary_linear import DualBinaryLinear
from shoestring.layers.float_coded_linear import FloatCodedLinear
from shoestring.layers.low_rank.low_rank_conv import LowRankConv
from shoestring.layers.low_rank.low_rank_linear import LowRankLinear
from shoestring.layers.reordered_linear import ReorderedLinear
from shoestring.layers.row_sparse_linear import RowSparseLinear
from shoestring.layers.sparse_linear import SparseLinear, stored_shapes
from shoestring.numbers.block_float import BlockFloat
from shoestring.numbers.dual_binary import DualBinary
from shoestring.numbers.sparse_values import ValueKind

Entry = Mapping[str, Any]
Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and type of each stored tensor, by its name in the module."""


class ModuleKind(ABC):
    """One class of modules. Sizes and bias are described for all of them; `describe` adds what is its own.

    `tensors` and `make` raise KeyError, TypeError or ValueError for an entry that is not valid.
    """

    module: type[nn.Module]

    def sizes(self, module: Any) -> dict[str, int]:
        """How many inputs and outputs it has."""
        return {"in_features": module.in_features, "out_features": module.out_features}

    @abstractmethod
    def describe(self, module: Any) -> dict[str, Any]:
        """What there is to say beside sizes and bias."""

    @abstractmethod
    def tensors(self, entry: Entry) -> Shapes:
        """Those whose shapes and types the entry fixes."""

    @abstractmethod
    def make(self, entry: Entry, **made: Any) -> nn.Module:
        """An empty module, to be filled from a state_dict. made: bias, dtype and device."""


class LowRankKind(ModuleKind):
    """Its factors are plain linear layers, whose type is the model's."""

    module = LowRankLinear

    def describe(self, module: LowRankLinear) -> dict[str, Any]:
        return {"rank": module.rank}

    def tensors(self, entry: Entry) -> Shapes:
        return {}

    def make(self, entry: Entry, **made: Any) -> nn.Module:
        return LowRankLinear(*_sizes(entry), entry["rank"], **made)


class LowRankConvKind(ModuleKind):
    """Its two convolutions are plain, of the model's type."""

    module = LowRankConv
    SETTINGS = ("stride", "padding", "dilation", "padding_mode")

    def sizes(self, module: LowRankConv) -> dict[str, int]:
        return {"in_channels": module.in_channels, "out_channels": module.out_channels}

    def describe(self, module: LowRankConv) -> dict[str, Any]:
        own = {"dims": module.dims, "rank": module.rank, "groups": module.groups}
        settings = {name: getattr(module.down, name) for name in ("kernel_size", *self.SETTINGS)}
        return own | {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}

    def tensors(self, entry: Entry) -> Shapes:
        return {}

    def make(self, entry: Entry, **made: Any) -> nn.Module:
        fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in entry.items()}
        settings = {name: fields[name] for name in self.SETTINGS}
        return LowRankConv(
            entry["dims"], entry["in_channels"], entry["out_channels"], fields["kernel_size"], entry["rank"],
            groups=entry["groups"], **settings, **made,
        )  # fmt: skip


class DualBinaryKind(ModuleKind):
    """Two planes and their levels."""

    module = DualBinaryLinear

    def describe(self, module: DualBinaryLinear) -> dict[str, Any]:
        return {"group_size": module.form.group_size}

    def tensors(self, entry: Entry) -> Shapes:
        inputs, outputs = _sizes(entry)
        return DualBinary(entry["group_size"]).tensors(outputs, inputs)

    def make(self, entry: Entry, **made: Any) -> nn.Module:
        return DualBinaryLinear(DualBinary(entry["group_size"]), *_sizes(entry), **made)


class SparseKind(ModuleKind):
    """A bitmap and the weights that are not zero. FORMAT: of the stored tensors, in case they ever change."""

    module = SparseLinear
    FORMAT = 1

    def describe(self, module: SparseLinear) -> dict[str, Any]:
        return {"format": self.FORMAT, "values": module.kind.value, "nonzeros": module.nonzeros}

    def tensors(self, entry: Entry) -> Shapes:
        return stored_shapes(*self._shape(entry))

    def make(self, entry: Entry, **made: Any) -> nn.Module:
        return SparseLinear(*self._shape(entry), **made)

    def _shape(self, entry: Entry) -> tuple[int, int, ValueKind, int]:
        if entry["format"] != self.FORMAT:
            raise ValueError(
                f"sparse weights of format {entry['format']}; this version reads format {self.FORMAT}"
            )
        return *_sizes(entry), ValueKind(entry["values"]), entry["nonzeros"]


class RowSparseKind(ModuleKind):
    """A transposed matrix of which rows are read, with thin ones beside it where its rank is not 0."""

    module = RowSparseLinear
    STORES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

    def describe(self, module: RowSparseLinear) -> dict[str, Any]:
        return {"rank": module.rank, "store": str(module.rows.dtype).removeprefix("torch.")}

    def tensors(self, entry: Entry) -> Shapes:
        (inputs, outputs), rank, store = _sizes(entry), entry["rank"], self._store(entry)
        found: Shapes = {"rows": ((inputs, outputs), store), "threshold": ((), torch.float32)}
        if rank:
            found["scales"] = (inputs,), torch.float32
            found["down"], found["up"] = ((inputs, rank), store), ((rank, outputs), store)
        return found

    def make(self, entry: Entry, **made: Any) -> nn.Module:
        return RowSparseLinear(*_sizes(entry), entry["rank"], store=self._store(entry), **made)

    def _store(self, entry: Entry) -> torch.dtype:
        return {str(store).removeprefix("torch."): store for store in self.STORES}[entry["store"]]


class ReorderedKind(ModuleKind):
    """An order of the inputs; the layer inside has an entry of its own and takes a placeholder's place."""

    module = ReorderedLinear

    def describe(self, module: ReorderedLinear) -> dict[str, Any]:
        return {}

    def tensors(self, entry: Entry) -> Shapes:
        return {"order": ((_sizes(entry)[0],), torch.int32)}

    def make(self, entry: Entry, **made: Any) -> nn.Module:
        inner = nn.Linear(*_sizes(entry), **(made | {"device": "meta"}))
        order = torch.arange(inner.in_features, dtype=torch.int32, device=made["device"])
        return ReorderedLinear(inner, order)


class FloatCodedKind(ModuleKind):
    """Codes of a narrow float and the scales of its blocks."""

    module = FloatCodedLinear

    def describe(self, module: FloatCodedLinear) -> dict[str, Any]:
        return asdict(module.form)

    def tensors(self, entry: Entry) -> Shapes:
        inputs, outputs = _sizes(entry)
        return self._form(entry).tensors(outputs, inputs)

    def make(self, entry: Entry, **made: Any) -> nn.Module:
        return FloatCodedLinear(self._form(entry), *_sizes(entry), **made)

    def _form(self, entry: Entry) -> BlockFloat:
        return BlockFloat(**{f.name: entry[f.name] for f in fields(BlockFloat)})


_ALL = (
    LowRankKind(), LowRankConvKind(), DualBinaryKind(), SparseKind(), RowSparseKind(), ReorderedKind(),
    FloatCodedKind(),
)  # fmt: skip
KINDS: dict[str, ModuleKind] = {kind.module.__name__: kind for kind in _ALL}
"""By the name of the class."""


def _sizes(entry: Entry) -> tuple[int, int]:
    return entry["in_features"], entry["out_features"]
