"""The rewritten modules of a model as a JSON document, and empty modules made from such a document.

Each entry stands under the module's name: {"kind": …, what its shapes follow from}. A module that borrows
its packed weight names the owner under "tied_to".
"""

from typing import Any

import torch
from torch import nn

from shoestring.errors import BadModelFile
from shoestring.layers.dual_binary_linear import DualBinaryLinear
from shoestring.layers.low_rank_linear import LowRankLinear
from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear, PackedWeight
from shoestring.layers.row_sparse_linear import RowSparseLinear
from shoestring.numbers.dual_binary import DualBinary
from shoestring.numbers.grouped_affine import GroupedAffine, ZeroPoint

Document = dict[str, dict[str, Any]]


def describe_modules(model: nn.Module) -> Document:
    """The entry of every rewritten module."""
    document: Document = {}
    owners = {
        id(module.packed): name
        for name, module in model.named_modules()
        if isinstance(module, PackedLinear | PackedEmbedding) and not module.borrows
    }
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            shape = {"in_features": module.in_features, "out_features": module.out_features}
            bias = module.bias is not None
            document[name] = {"kind": "LowRankLinear", **shape, "rank": module.rank, "bias": bias}
        elif isinstance(module, DualBinaryLinear):
            shape = {"in_features": module.in_features, "out_features": module.out_features}
            bias, group_size = module.bias is not None, module.form.group_size
            document[name] = {"kind": "DualBinaryLinear", **shape, "group_size": group_size, "bias": bias}
        elif isinstance(module, RowSparseLinear):
            document[name] = _describe_row_sparse(module)
        elif isinstance(module, PackedLinear | PackedEmbedding):
            document[name] = _describe_packed(module)
            if module.borrows:
                document[name]["tied_to"] = owners[id(module.packed)]
    return document


def install_modules(
    model: nn.Module, document: Document, *, dtype: torch.dtype, device: torch.device | str | None = None
) -> None:
    """Replace the named modules of `model` by empty rewritten ones, to be filled from a state_dict.

    Raises: BadModelFile if an entry names no module of the model or says what no module can be.
    """
    # A factor stands inside its low-rank layer, a tied module leans on its leader: these come later.
    order = sorted(document.items(), key=lambda item: ("tied_to" in item[1], item[0].count(".")))
    for name, entry in order:
        path, _, leaf = name.rpartition(".")
        try:
            parent = model.get_submodule(path)
            old = parent.get_submodule(leaf)
        except AttributeError as error:
            raise BadModelFile(f"the saved formats name {name!r}, which the model has not.") from error
        try:
            new = _make(entry, document, model, dtype, device)
        except (KeyError, TypeError, ValueError) as error:
            raise BadModelFile(f"the saved format of {name!r} is not valid: {error!r}.") from error
        new.train(old.training)
        setattr(parent, leaf, new)


def stored_tensors(document: Document) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and safetensors type of each packed tensor that the document asks for.

    Raises: BadModelFile if an entry is not valid.
    """
    tensors: dict[str, tuple[tuple[int, ...], str]] = {}
    names = {torch.uint8: "U8", torch.float16: "F16"}
    for name, entry in document.items():
        kind = entry.get("kind")
        if kind == "RowSparseLinear":
            tensors |= _row_sparse_tensors(name, entry)
        if kind not in ("PackedLinear", "PackedEmbedding", "DualBinaryLinear") or "tied_to" in entry:
            continue
        try:
            if kind == "DualBinaryLinear":
                form = DualBinary(entry["group_size"])
                parts, prefix = form.tensors(entry["out_features"], entry["in_features"]), name
            else:
                parts, prefix = _form(entry).tensors(entry["rows"], entry["cols"]), f"{name}.packed"
        except (KeyError, TypeError, ValueError) as error:
            raise BadModelFile(f"the saved format of {name!r} is not valid: {error!r}.") from error
        for part, (shape, dtype) in parts.items():
            tensors[f"{prefix}.{part}"] = (shape, names[dtype])
    return tensors


def is_rewritten(module: nn.Module) -> bool:
    """Whether the module is one that recipes put in place of another."""
    kinds = PackedLinear | PackedEmbedding | LowRankLinear | DualBinaryLinear | RowSparseLinear
    return isinstance(module, kinds)


def _describe_packed(module: PackedLinear | PackedEmbedding) -> dict[str, Any]:
    packed, form = module.packed, module.packed.form
    entry: dict[str, Any] = {
        "kind": type(module).__name__,
        "rows": packed.rows,
        "cols": packed.cols,
        "bits": form.bits,
        "group_size": form.group_size,
        "zero_point": form.zero_point.value,
        "scale_bits": form.scale_bits,
    }
    if isinstance(module, PackedLinear):
        entry["bias"] = module.bias is not None
    else:
        entry["padding_idx"] = module.padding_idx
        if module.scale != 1.0:
            entry["scale"] = module.scale
    return entry


_STORES = {
    "float64": (torch.float64, "F64"),
    "float32": (torch.float32, "F32"),
    "bfloat16": (torch.bfloat16, "BF16"),
    "float16": (torch.float16, "F16"),
}
"""The types of row-sparse matrices, by their names in a document: torch's, and that of safetensors."""


def _describe_row_sparse(module: RowSparseLinear) -> dict[str, Any]:
    return {
        "kind": "RowSparseLinear",
        "in_features": module.in_features,
        "out_features": module.out_features,
        "rank": module.rank,
        "bias": module.bias is not None,
        "store": str(module.rows.dtype).removeprefix("torch."),
    }


def _row_sparse_tensors(name: str, entry: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    try:
        inputs, outputs, rank = entry["in_features"], entry["out_features"], entry["rank"]
        store = _STORES[entry["store"]][1]
    except (KeyError, TypeError) as error:
        raise BadModelFile(f"the saved format of {name!r} is not valid: {error!r}.") from error
    tensors: dict[str, tuple[tuple[int, ...], str]] = {
        f"{name}.rows": ((inputs, outputs), store),
        f"{name}.threshold": ((), "F32"),
    }
    if rank:
        tensors[f"{name}.scales"] = ((inputs,), "F32")
        tensors[f"{name}.down"] = ((inputs, rank), store)
        tensors[f"{name}.up"] = ((rank, outputs), store)
    return tensors


def _form(entry: dict[str, Any]) -> GroupedAffine:
    zero_point = ZeroPoint(entry["zero_point"])
    return GroupedAffine(entry["bits"], entry["group_size"], zero_point, entry["scale_bits"])


def _make(
    entry: dict[str, Any],
    document: Document,
    model: nn.Module,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> nn.Module:
    kind = entry["kind"]
    if kind == "LowRankLinear":
        shape = entry["in_features"], entry["out_features"], entry["rank"]
        return LowRankLinear(*shape, bias=entry["bias"], dtype=dtype, device=device)
    if kind == "DualBinaryLinear":
        sizes = entry["in_features"], entry["out_features"]
        form = DualBinary(entry["group_size"])
        return DualBinaryLinear(form, *sizes, bias=entry["bias"], dtype=dtype, device=device)
    if kind == "RowSparseLinear":
        shape = entry["in_features"], entry["out_features"], entry["rank"]
        store = _STORES[entry["store"]][0]
        return RowSparseLinear(*shape, bias=entry["bias"], store=store, dtype=dtype, device=device)
    if kind not in ("PackedLinear", "PackedEmbedding"):
        raise ValueError(f"kind {kind!r} is unknown to this version")
    if "tied_to" in entry:
        leader = model.get_submodule(entry["tied_to"])
        if not isinstance(leader, PackedLinear | PackedEmbedding) or entry["tied_to"] not in document:
            raise ValueError(f"tied_to names {entry['tied_to']!r}, which is not packed")
        packed = leader.packed
    else:
        packed = PackedWeight(_form(entry), entry["rows"], entry["cols"], dtype=dtype, device=device)
    layer: PackedEmbedding | PackedLinear
    if kind == "PackedEmbedding":
        layer = PackedEmbedding(packed, entry["padding_idx"], entry.get("scale", 1.0))
    else:
        bias = torch.zeros(packed.rows, dtype=dtype, device=device) if entry["bias"] else None
        layer = PackedLinear(packed, bias)
    if "tied_to" in entry:
        layer.borrow()
    return layer
