"""Dequantise packed rows: a compiled loop on the CPU, plain torch elsewhere; both give the same bits."""

import ctypes
import functools
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import Cost, states_cost
from shoestring.kernels.native import load_library
from shoestring.notices import notice_fallback
from shoestring.numbers.grouped_affine import AffineGrid, GroupedAffine
from shoestring.numbers.packing import unpack_bits


def _cost(
    form: GroupedAffine, stored: dict[str, Tensor], cols: int, dtype: torch.dtype = torch.float32
) -> Cost:
    """A multiply-add for each weight; the stored tensors are read, the matrix is written."""
    weights = stored["codes"].shape[0] * cols
    return Cost(2 * weights, sum(part.nbytes for part in stored.values()) + weights * dtype.itemsize)


@states_cost(_cost)
def dequantise_rows(
    form: GroupedAffine, stored: dict[str, Tensor], cols: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "rows cols"]:
    """The (rows, cols) matrix that the stored tensors of `form` stand for, rounded once to `dtype`.

    On the CPU a compiled loop does it; without a compiler, and on other devices, plain torch (with a notice
    in the first case). The grid must not need a gradient: this path is for inference.
    """
    grid = form.grid(stored, cols)
    if stored["codes"].device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        try:
            library = _library()
        except NoCompiler as error:
            notice_fallback("dequantise", f"plain torch instead of the compiled loop ({error})")
        else:
            return _compiled(library, form, stored["codes"], grid, cols, dtype)
    return form.decode(unpack_bits(stored["codes"], form.bits, cols), grid).to(dtype)


def _compiled(
    library: ctypes.CDLL, form: GroupedAffine, codes: Tensor, grid: AffineGrid, cols: int, dtype: torch.dtype
) -> Tensor:
    codes = codes.contiguous()
    scale, zero, offset = (part.contiguous() for part in (grid.scale, grid.zero, grid.offset))
    out = torch.empty(codes.shape[0], cols, dtype=dtype)
    failed = library.dequantise(
        codes.data_ptr(), codes.shape[1], form.bits, codes.shape[0], cols, form.group_size,
        scale.data_ptr(), zero.data_ptr(), offset.data_ptr(), out.data_ptr(),
        int(dtype == torch.bfloat16), torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no memory to unpack rows of {cols} codes")
    return out


@functools.cache
def _library() -> ctypes.CDLL:
    library = load_library(Path(__file__).with_suffix(".c"), extra_flags=("-ffp-contract=off",))
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.dequantise.argtypes = [
        pointer, size, number, size, size, size, pointer, pointer, pointer, pointer, number, number,
    ]  # fmt: skip
    library.dequantise.restype = number
    return library
