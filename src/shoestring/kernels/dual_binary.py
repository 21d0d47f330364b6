"""y = x Wᵀ for weights kept as two binary planes: by lookup, by masked additions, or by popcount alone.

Source: Chen et al. 2024, "DB-LLM", section 3.2 (two sparse binary products); the lookup is ours.
"""

import ctypes
import enum
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Float16, Int8, Shaped, UInt8
from torch import Tensor

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import Cost, states_cost
from shoestring.kernels.linear_kernel import LinearKernel
from shoestring.kernels.native import load_library
from shoestring.notices import notice_fallback
from shoestring.numbers.dual_binary import unpack_planes

RUN = 64
"""Inputs whose codes the lookup reads at once."""


class Method(enum.Enum):
    """How the sums are made; all three give the same up to rounding."""

    LOOKUP = "lookup"
    MASKED = "masked"
    BITWISE = "bitwise"


@dataclass(frozen=True, eq=False)
class PlaneWeights:
    """Both planes and the levels of a matrix, as stored. group_size divides `cols`."""

    first: UInt8[Tensor, "rows bytes"] = field(repr=False)
    second: UInt8[Tensor, "rows bytes"] = field(repr=False)
    levels: Float16[Tensor, "rows groups 2"] = field(repr=False)
    cols: int
    group_size: int

    @property
    def rows(self) -> int:
        return self.first.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of planes and levels."""
        return self.first.nbytes + self.second.nbytes + self.levels.nbytes

    def planes(self) -> tuple[Bool[Tensor, "rows cols"], Bool[Tensor, "rows cols"]]:
        """The planes, a byte for each bit."""
        return unpack_planes(self.first, self.second, self.cols)

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "rows cols"]:
        """The matrix."""
        first, second = self.planes()
        a1, a2 = self.levels.float().repeat_interleave(self.group_size, 1).unbind(-1)
        return (a1 * first + a2 * second).to(dtype)

    @functools.cached_property
    def lookup(self) -> LinearKernel:
        """The planes woven into 2-bit codes in the order of the lookup; made once.

        Raises: NoCompiler; ValueError for groups that are not whole runs of 64.
        """
        return self.kernel(None)

    def kernel(self, bias: Tensor | None) -> LinearKernel:
        """As `lookup`, with a bias: what a decode step calls in threads of its own."""
        return _weave(self, bias)

    def set_bits(self) -> int:
        """Ones in both planes: the additions that a row of x takes."""
        return sum(int(plane.sum()) for plane in self.planes())


def naive_dual_binary_linear(
    x: Float[Tensor, "*batch cols"], weights: PlaneWeights
) -> Float[Tensor, "*batch rows"]:
    """Σ over groups of a₁·Σ_{b₁} x + a₂·Σ_{b₂} x, plane by plane."""
    groups = weights.cols // weights.group_size
    grouped = x.float().reshape(-1, 1, groups, weights.group_size)
    total = x.new_zeros((), dtype=torch.float32)
    for plane, level in zip(weights.planes(), weights.levels.float().unbind(-1), strict=True):
        chosen = plane.reshape(weights.rows, groups, weights.group_size)
        total = total + ((grouped * chosen).sum(-1) * level).sum(-1)
    return total.reshape(*x.shape[:-1], weights.rows).to(x.dtype)


def _cost(x: Tensor, weights: PlaneWeights, method: Method = Method.LOOKUP) -> Cost:
    """An addition for each set bit; two multiply-adds for each group."""
    tokens = x.numel() // max(weights.cols, 1)
    operations = weights.set_bits() + 4 * weights.rows * weights.levels.shape[1]
    written = tokens * weights.rows * x.element_size()
    return Cost(tokens * operations, weights.nbytes + x.nbytes + written)


@states_cost(_cost)
def dual_binary_linear(
    x: Float[Tensor, "*batch cols"], weights: PlaneWeights, method: Method = Method.LOOKUP
) -> Float[Tensor, "*batch rows"]:
    """x·Wᵀ in the type of x, summed in float32; for a few rows of x, and for inference: no gradient flows.

    BITWISE rounds every row of x to 8 bits with one scale; `bitwise_linear` takes integers as they are.
    Without a compiler, or for another device, the planes are added up in torch, with a notice.

    Raises: ValueError for other inputs than the weights have, or groups that `method` cannot take: whole runs
    of 64 for LOOKUP and BITWISE, whole eights for MASKED.
    """
    if x.shape[-1] != weights.cols:
        raise ValueError(f"x has {x.shape[-1]} inputs, the weights {weights.cols}.")
    _check_groups(weights, method)
    flat = x.detach().reshape(-1, weights.cols).float().contiguous()
    if method is Method.BITWISE:
        scales = flat.abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        codes = (flat / scales[:, None]).round().to(torch.int8)
        return bitwise_linear(codes, scales, weights).reshape(*x.shape[:-1], weights.rows).to(x.dtype)
    library = _library_for(x)
    if library is None:
        return naive_dual_binary_linear(x, weights)
    if method is Method.LOOKUP:
        y = weights.lookup(flat)
    else:
        y = torch.empty(len(flat), weights.rows)
        _call_planes(library.dual_binary_masked, weights, (flat,), y, torch.get_num_threads())
    return y.reshape(*x.shape[:-1], weights.rows).to(x.dtype)


def bitwise_linear(
    codes: Shaped[Tensor, "tokens cols"], scales: Float[Tensor, " tokens"], weights: PlaneWeights
) -> Float[Tensor, "tokens rows"]:
    """(scales·codes)·Wᵀ with nothing but AND and popcount inside a group: exact in integers there.

    Raises: TypeError for inputs that are not int8, ValueError for groups that are not whole words of 64.
    """
    if codes.dtype != torch.int8:
        raise TypeError(
            f"the bitwise product takes int8 inputs and their scales, not {codes.dtype}; "
            "use dual_binary_linear for floats."
        )
    _check_groups(weights, Method.BITWISE)
    library = _library_for(codes)
    if library is None:
        return naive_dual_binary_linear(codes.float() * scales[:, None], weights)
    y = torch.empty(len(codes), weights.rows)
    planes = _bit_planes(codes, weights.group_size)
    scales = scales.float().contiguous()
    _call_planes(library.dual_binary_bitwise, weights, (planes, scales), y, torch.get_num_threads())
    return y


def _weave(weights: PlaneWeights, bias: Tensor | None) -> LinearKernel:
    _check_groups(weights, Method.LOOKUP)
    first, second = (plane.to(torch.uint8) for plane in weights.planes())
    # (row, run, field, lane): bits 2j and 2j + 1 of byte `lane` are input 16 j + lane of the run
    fields = (first | second << 1).reshape(weights.rows, -1, 4, 16)
    codes = fields[:, :, 0] | fields[:, :, 1] << 2 | fields[:, :, 2] << 4 | fields[:, :, 3] << 6
    levels = weights.levels.repeat_interleave(weights.group_size // RUN, 1).contiguous()
    library, size = _library(), (weights.cols, weights.rows)
    return LinearKernel(
        library.dual_binary_run, library.dual_binary_scratch, *size, (codes, levels), bias=bias
    )


def _bit_planes(codes: Int8[Tensor, "tokens cols"], group_size: int) -> UInt8[Tensor, "tokens bytes"]:
    """Bits of x + 128, plane by plane within a group, eight inputs to a byte."""
    shifted = (codes.int() + 128).to(torch.uint8).reshape(len(codes), -1, group_size // 8, 8)
    weights = 1 << torch.arange(8, dtype=torch.int32)
    planes = [((shifted >> j & 1) * weights).sum(-1).to(torch.uint8) for j in range(8)]
    return torch.stack(planes, 2).reshape(len(codes), -1).contiguous()


def _call_planes(
    function: Callable[..., Any],
    weights: PlaneWeights,
    inputs: tuple[Tensor, ...],
    y: Tensor,
    threads: int,
) -> None:
    stored = [part.contiguous() for part in (weights.first, weights.second, weights.levels)]
    pointers = [ctypes.c_void_p(part.data_ptr()) for part in stored]
    function(
        pointers[0], pointers[1], ctypes.c_int64(stored[0].shape[1]), pointers[2],
        ctypes.c_int64(weights.rows), ctypes.c_int64(weights.cols), ctypes.c_int64(weights.group_size),
        *(ctypes.c_void_p(part.data_ptr()) for part in inputs), ctypes.c_void_p(y.data_ptr()),
        ctypes.c_int64(len(y)), threads,
    )  # fmt: skip


def _check_groups(weights: PlaneWeights, method: Method) -> None:
    whole = 8 if method is Method.MASKED else RUN
    if weights.group_size % whole or weights.cols % weights.group_size:
        raise ValueError(
            f"group_size={weights.group_size} of {weights.cols} inputs: {method.value} takes whole groups of "
            f"a multiple of {whole}."
        )


def _library_for(x: Tensor) -> ctypes.CDLL | None:
    if x.device.type != "cpu":
        notice_fallback("dual_binary_linear", f"adds planes in torch on {x.device}: the kernel is for CPUs")
        return None
    try:
        return _library()
    except NoCompiler as error:
        notice_fallback("dual_binary_linear", f"adds planes in torch instead of the compiled loop ({error})")
        return None


@functools.cache
def _library() -> ctypes.CDLL:
    return load_library(Path(__file__).with_suffix(".c"), extra_flags=("-ffp-contract=off",))
