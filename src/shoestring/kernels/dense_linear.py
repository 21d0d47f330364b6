"""The kernel of a linear layer whose matrix is stored plainly, in float32, bfloat16 or float16."""

import ctypes
import functools
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.kernels.linear_kernel import LinearKernel
from shoestring.kernels.native import load_library

STORAGE_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The types that the kernels read, by their number in `lanes.h`."""
FLAGS = ("-ffp-contract=fast",)
"""Products are fused with sums: one rounding less, and twice the speed."""


def dense_linear(
    weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None = None
) -> LinearKernel:
    """y = x Wᵀ (+ b) with W as it is, not copied where it is contiguous; x and all sums are float32.

    Raises: TypeError for another type; NoCompiler.
    """
    names = {torch.float32: "dense_float32", torch.bfloat16: "dense_bfloat16", torch.float16: "dense_float16"}
    if weight.dtype not in names:
        raise TypeError(f"a matrix of {weight.dtype} has no dense kernel; use one of {list(names)}.")
    library = _library()
    outputs, inputs = weight.shape
    run = getattr(library, names[weight.dtype])
    return LinearKernel(run, library.no_scratch, inputs, outputs, [weight.detach().contiguous()], bias=bias)


@functools.cache
def _library() -> ctypes.CDLL:
    return load_library(Path(__file__).with_suffix(".c"), extra_flags=FLAGS)
