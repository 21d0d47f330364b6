"""Symmetric group scales for any narrow type: what turns a weight matrix into the template's operands.

Source: Tilus (2025), section 9.1.
"""

import numpy as np
from jaxtyping import Float, UInt32

from shoestring.kernels.tile.types import DataType

LEAST_SCALE = 1e-6


def quantise_groups(
    weight: Float[np.ndarray, "k n"], dtype: DataType, group_size: int, scale_type: DataType
) -> tuple[UInt32[np.ndarray, "k n"], UInt32[np.ndarray, "groups n"]]:
    """Codes of `dtype` and of the scales: s = max|w| / max_value of each group of `group_size` rows, ≥ 1e-6.

    The scale is rounded to `scale_type` before the weights are divided by it, so that what is stored is what
    was used. The last group may be short.

    Raises: ValueError for an unsigned type (symmetric weights have a sign) or a group size below 1.
    """
    if dtype.is_unsigned:
        raise ValueError(
            f"{dtype} is unsigned: a symmetric quantiser needs a sign, use i{max(dtype.bits, 2)}"
        )
    if group_size < 1:
        raise ValueError(f"group_size={group_size}: a group has at least one row")
    starts = np.arange(0, len(weight), group_size)
    largest = np.maximum.reduceat(np.abs(weight), starts, axis=0)
    scale_codes = scale_type.encode(np.maximum(largest / dtype.max_value, LEAST_SCALE).astype(np.float32))
    scale = scale_type.decode(scale_codes)
    # -max - 1 of two's complement would make the grid lopsided
    steps = np.clip(
        weight / np.repeat(scale, group_size, axis=0)[: len(weight)], -dtype.max_value, dtype.max_value
    )
    return dtype.encode(steps.astype(np.float32)), scale_codes


def dequantise_groups(
    codes: UInt32[np.ndarray, "k n"],
    scale_codes: UInt32[np.ndarray, "groups n"],
    dtype: DataType,
    group_size: int,
    scale_type: DataType,
) -> Float[np.ndarray, "k n"]:
    """The matrix that codes and scales stand for, float32."""
    scale = np.repeat(scale_type.decode(scale_codes), group_size, axis=0)[: len(codes)]
    return dtype.decode(codes).astype(np.float32) * scale
