"""Sums of real geometric sequences as a compiled loop (`real_vandermonde.c`), with their gradient."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import count_cost
from shoestring.kernels.native import load_library

MOST_STATES = 128
"""The most geometric sequences in a sum; as in `real_vandermonde.c`."""
_TERMS_OF_A_THREAD = 1 << 21
"""Waking a thread that sleeps takes as long as this many."""


def why_not(coefficients: Tensor, log_poles: Tensor) -> str | None:
    """Why the compiled loop cannot sum these; None where it can."""
    if coefficients.device.type != "cpu":
        return f"torch's products answer on {coefficients.device}: the compiled loop is for CPUs"
    if torch.float32 != coefficients.dtype or torch.float32 != log_poles.dtype:
        return f"torch's products answer for {coefficients.dtype}: the compiled loop computes in float32"
    if coefficients.shape[-1] > MOST_STATES:
        return f"torch's products answer: {coefficients.shape[-1]} sequences are more than {MOST_STATES}"
    try:
        library()
    except NoCompiler as error:
        return f"torch's products answer instead of the compiled loop ({error})"
    return None


def compiled_real_vandermonde(
    coefficients: Float[Tensor, "*batch n"], log_poles: Float[Tensor, "*#batch n"], length: int
) -> Float[Tensor, "*batch length"]:
    """As `real_vandermonde`, of float32 on the CPU. Raises: NoCompiler."""
    shape = torch.broadcast_shapes(coefficients.shape, log_poles.shape)
    found: Tensor = _Sums.apply(coefficients.expand(shape), log_poles.expand(shape), length)
    return found


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, coefficients: Tensor, log_poles: Tensor, length: int) -> Tensor:
        coefficients, log_poles = coefficients.contiguous(), log_poles.contiguous()
        ctx.save_for_backward(coefficients, log_poles)
        taps = coefficients.new_empty(*coefficients.shape[:-1], length)
        moved = coefficients.nbytes + log_poles.nbytes + taps.nbytes
        # A power and a multiply-add for every term.
        with count_cost("real_vandermonde", flops=3 * coefficients.numel() * length, bytes=moved):
            library().real_vandermonde_forward(_arguments(coefficients, log_poles, length, taps=taps))
        return taps

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        coefficients, log_poles = ctx.saved_tensors  # type: ignore[attr-defined]
        parts = {
            "grad": grad.contiguous(),
            "to_coefficients": torch.empty_like(coefficients),
            "to_log_poles": torch.empty_like(log_poles),
        }
        terms = coefficients.numel() * grad.shape[-1]
        moved = 2 * (coefficients.nbytes + log_poles.nbytes) + grad.nbytes
        with count_cost("real_vandermonde_backward", flops=6 * terms, bytes=moved):
            library().real_vandermonde_backward(_arguments(coefficients, log_poles, grad.shape[-1], **parts))
        return parts["to_coefficients"], parts["to_log_poles"], None


class _Arguments(ctypes.Structure):
    """The C struct `real_vandermonde`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "states", "length", "threads")),
        *((name, ctypes.c_void_p) for name in ("coefficients", "log_poles", "taps", "grad")),
        *((name, ctypes.c_void_p) for name in ("to_coefficients", "to_log_poles")),
    )


def _arguments(coefficients: Tensor, log_poles: Tensor, length: int, **others: Tensor) -> Any:
    pointers = {"coefficients": coefficients, "log_poles": log_poles, **others}
    most = 1 + coefficients.numel() * length // _TERMS_OF_A_THREAD
    return ctypes.byref(
        _Arguments(
            rows=coefficients[..., 0].numel(), states=coefficients.shape[-1], length=length,
            threads=min(torch.get_num_threads(), most),
            **{name: part.data_ptr() for name, part in pointers.items()},
        )
    )  # fmt: skip


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled loop. Raises: NoCompiler."""
    return load_library(Path(__file__).with_name("real_vandermonde.c"), extra_flags=("-ffp-contract=fast",))
