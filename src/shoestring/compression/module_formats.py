"""The rewritten modules of a model as a JSON document, and empty modules made from such a document.

Each entry stands under the module's name: {"kind": …, what its shapes follow from}. A module that borrows
its packed weight names the owner under "tied_to".
"""

from typing import Any

import torch
from torch import nn

from shoestring.compression.module_kinds import KINDS
from shoestring.errors import BadModelFile
from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear, PackedWeight
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
        if (kind := KINDS.get(type(module).__name__)) and type(module) is kind.module:
            entry = {"kind": type(module).__name__, **kind.sizes(module), **kind.describe(module)}
            document[name] = entry | {"bias": module.bias is not None}
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
    for name, entry in document.items():
        kind = entry.get("kind")
        try:
            if kind in KINDS:
                parts, prefix = KINDS[kind].tensors(entry), name
            elif kind in _PACKED and "tied_to" not in entry:
                parts, prefix = _form(entry).tensors(entry["rows"], entry["cols"]), f"{name}.packed"
            else:
                continue
        except (KeyError, TypeError, ValueError) as error:
            raise BadModelFile(f"the saved format of {name!r} is not valid: {error!r}.") from error
        for part, (shape, dtype) in parts.items():
            tensors[f"{prefix}.{part}"] = (shape, _SAFETENSORS_NAMES[dtype])
    return tensors


def is_rewritten(module: nn.Module) -> bool:
    """Whether the module is one that recipes put in place of another."""
    return isinstance(module, (PackedLinear, PackedEmbedding, *(kind.module for kind in KINDS.values())))


_PACKED = ("PackedLinear", "PackedEmbedding")
_SAFETENSORS_NAMES = {
    torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip


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
    if kind in KINDS:
        return KINDS[kind].make(entry, bias=entry["bias"], dtype=dtype, device=device)
    if kind not in _PACKED:
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
