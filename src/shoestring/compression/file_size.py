"""How many bytes a model will take as a safetensors file, before it is written."""

import json
import math

import torch
from torch import nn

from shoestring.compression.saved_folder import unique_tensors

HEADER_LENGTH_BYTES = 8
HEADER_ALIGNMENT = 8

TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def file_bytes(model: nn.Module) -> int:
    """Bytes of `model.safetensors` as `save` writes it: header and tensors, shared ones once.

    Raises: ValueError for a tensor of a type that safetensors files do not hold.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in unique_tensors(model).items():
        if tensor.dtype not in TYPE_NAMES:
            raise ValueError(f"{name!r} is {tensor.dtype}, which a safetensors file does not hold.")
        stop = start + tensor.nbytes
        header[name] = {
            "dtype": TYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return HEADER_LENGTH_BYTES + math.ceil(len(text) / HEADER_ALIGNMENT) * HEADER_ALIGNMENT + start
