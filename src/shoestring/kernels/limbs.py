"""Activations as whole numbers of a few bytes ("limbs"), which instructions for bytes multiply exactly.

Each group of inputs of each row has a unit, the smallest power of two of which the whole numbers reach its
largest magnitude: x = unit · Σ 256^l · limb_l. Whole numbers of two bytes are within 2^-15 of a group's
largest magnitude, those of three within 2^-23; a bfloat16 number not below 2^-7 of it is kept exactly.

Source: fixed-point activations as in Nagel et al. 2021, "A White Paper on Neural Network Quantization",
section 2.2, of more than one byte.
"""

import ctypes
import functools
from pathlib import Path

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from shoestring.kernels.native import load_library

RUN = 32
"""Inputs that lie together, of one row and one limb."""
LARGEST = {1: 127, 2: 32639, 3: 8355711}
"""The largest whole number of so many limbs of −127 .. 127."""


def split_in_limbs(
    x: Float[Tensor, "rows inputs"], group_size: int, limbs: int, block: int
) -> tuple[Int8[Tensor, "blocks runs limbs block 32"], Float[Tensor, "blocks groups limbs block"]]:
    """The limbs of x, lowest first, and what one counts in each, for `block` rows side by side.

    Groups are padded to whole runs of 32 and rows to whole blocks, with zeros. A group with a NaN or an
    infinity has NaN for what one counts.

    Raises: ValueError for limbs other than 1, 2 or 3, or inputs that are not whole groups. NoCompiler.
    """
    rows, groups, runs, blocks = _sizes(x, group_size, limbs, block)
    held = x.float().contiguous()
    parts = torch.empty(blocks, groups * runs, limbs, block, RUN, dtype=torch.int8)
    factors = torch.empty(blocks, groups, limbs, block)
    sizes = held.data_ptr(), rows, groups, group_size, limbs, block
    _function()(*sizes, parts.data_ptr(), factors.data_ptr())
    return parts, factors


def naive_split_in_limbs(
    x: Float[Tensor, "rows inputs"], group_size: int, limbs: int, block: int
) -> tuple[Int8[Tensor, "blocks runs limbs block 32"], Float[Tensor, "blocks groups limbs block"]]:
    """The same in torch, in float64: whole = round(x / unit), limb_l = digit l of it in base 256."""
    rows, groups, runs, blocks = _sizes(x, group_size, limbs, block)
    whole_blocks = torch.nn.functional.pad(x.double(), (0, 0, 0, blocks * block - rows))
    grouped = whole_blocks.reshape(blocks * block, groups, group_size)
    most = grouped.abs().amax(-1)
    unit = torch.exp2(torch.ceil(torch.log2(most.clamp(min=LARGEST[limbs] * 2.0**-125) / LARGEST[limbs])))
    whole = torch.round(grouped / unit[..., None]).nan_to_num(0.0, 0.0, 0.0)
    whole = torch.where(most.isfinite()[..., None], whole, 0.0).long()
    digits = []
    for _ in range(limbs):
        digits.append((whole + 128) % 256 - 128)
        whole = (whole + 128) // 256
    factor = torch.where(most.isfinite(), unit, torch.nan)
    factors = torch.stack([factor * 256.0**limb for limb in range(limbs)])
    padded = torch.nn.functional.pad(torch.stack(digits), (0, runs * RUN - group_size))
    parts = padded.reshape(limbs, blocks, block, groups * runs, RUN).permute(1, 3, 0, 2, 4)
    ordered = factors.reshape(limbs, blocks, block, groups).permute(1, 3, 0, 2)
    return parts.to(torch.int8).contiguous(), ordered.float().contiguous()


def _sizes(x: Tensor, group_size: int, limbs: int, block: int) -> tuple[int, int, int, int]:
    """Rows, groups of a row, runs of a group, blocks of rows."""
    rows, inputs = x.shape
    if limbs not in LARGEST:
        raise ValueError(f"limbs={limbs}; use 2 for halves, 3 for float32, or 1")
    if min(group_size, block) < 1 or inputs % group_size:
        raise ValueError(f"{inputs} inputs are not whole groups of group_size={group_size} (block={block})")
    return rows, inputs // group_size, -(-group_size // RUN), -(-rows // block)


@functools.cache
def _function() -> "ctypes._NamedFuncPointer":
    function = load_library(Path(__file__).parent / "limbs.c").split_in_limbs
    whole, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [pointer, whole, whole, whole, ctypes.c_int, whole, pointer, pointer]
    function.restype = None
    return function
