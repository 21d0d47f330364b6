"""How many bytes a model will take as a safetensors file, before it is written."""

import json
import math

import torch
from torch import nn

from shoestring.compression.saved_folder import unique_tensors

HEADER_LENGTH_BYTES = 8
HEADER_ALIGNMENT = 8

TYPE_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
"""In the order in which the library lays tensors out, last to first; within a type by name."""


def file_bytes(model: nn.Module) -> int:
    """Bytes of `model.safetensors` as `save` writes it: header and tensors, shared ones once.

    Raises: ValueError for a tensor of a type that models are not saved in.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    rank = {dtype: -place for place, dtype in enumerate(TYPE_NAMES)}
    tensors = unique_tensors(model)
    for name, tensor in tensors.items():
        if tensor.dtype not in TYPE_NAMES:
            raise ValueError(f"{name!r} is {tensor.dtype}, whose place in a safetensors file is not known.")
    for name, tensor in sorted(tensors.items(), key=lambda item: (rank[item[1].dtype], item[0])):
        stop = start + tensor.nbytes
        header[name] = {
            "dtype": TYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return HEADER_LENGTH_BYTES + math.ceil(len(text) / HEADER_ALIGNMENT) * HEADER_ALIGNMENT + start
