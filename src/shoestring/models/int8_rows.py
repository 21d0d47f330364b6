"""Trained weights in a small file: matrices as int8 with a float32 scale for every row, the rest in
float32."""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Int8
from safetensors.torch import load_file, save_file
from torch import Tensor

SCALE = ".scale"


def rows_to_int8(
    weight: Float[Tensor, "rows columns"],
) -> tuple[Int8[Tensor, "rows columns"], Float[Tensor, " rows"]]:
    """Codes −127 … 127 and the float32 scale of every row; a row of zeros has scale 0."""
    scale = weight.float().abs().amax(1) / 127
    codes = (weight.float() / torch.where(scale > 0, scale, 1.0)[:, None]).round()
    return codes.to(torch.int8), scale


def save_int8(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors to a safetensors file, those with two axes as codes, integers as they are."""
    stored: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if value.dim() == 2:
            stored[name], stored[name + SCALE] = rows_to_int8(value)
        else:
            stored[name] = (value.float() if value.is_floating_point() else value).contiguous()
    save_file(stored, file)


def load_int8(file: Path) -> dict[str, Tensor]:
    """What `save_int8` wrote, numbers in float32. Raises: FileNotFoundError."""
    stored = load_file(file)
    return {
        name: value.float() * stored[name + SCALE][:, None] if value.dtype == torch.int8 else value
        for name, value in stored.items()
        if not name.endswith(SCALE)
    }
