"""The spectrum of a diagonal plus low rank state space as a compiled loop (`cauchy.c`), with its gradient."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from shoestring.kernels.cauchy_torch import Circle
from shoestring.kernels.native import load_library

LANES = 8
"""Frequencies in a vector; as in `cauchy.c`."""

_SIZES = ("items", "features", "poles", "frequencies", "single", "threads")
_POINTERS = (
    *("sin", "cos", "output", "poles_of", "low_rank", "input", "step"),
    *("coefficients", "trace", "square", "grad", "spectrum"),
    *("to_output", "to_poles", "to_low_rank", "to_input", "to_step"),
)


class _Arguments(ctypes.Structure):
    """The C struct `cauchy`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    )


def compiled_spectrum(
    output: Complex[Tensor, "channels features n"],
    poles: Complex[Tensor, "features n"],
    low_rank: Complex[Tensor, "features n"],
    input: Complex[Tensor, "features n"],
    step: Float[Tensor, " features"],
    length: int,
) -> Complex[Tensor, "channels features frequencies"]:
    """As `dplr_spectrum`, on the CPU and of an even length. Raises: NoCompiler."""
    found: Tensor = _CompiledSpectrum.apply(output, poles, low_rank, input, step, length)
    return found


class _CompiledSpectrum(torch.autograd.Function):
    """Everything in float64; gradients of what channels share are those of each, summed."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        output: Tensor,
        poles: Tensor,
        low_rank: Tensor,
        input: Tensor,
        step: Tensor,
        length: int,
    ) -> Tensor:
        given = (output, poles, low_rank, input)
        wide = [x.to(torch.complex128).resolve_conj().contiguous() for x in given]
        wide.append(step.double().contiguous())
        spectrum = torch.empty(*output.shape[:2], length // 2 + 1, dtype=output.dtype)
        ctx.save_for_backward(*wide)
        ctx.length, ctx.types = length, [x.dtype for x in (*given, step)]  # type: ignore[attr-defined]
        tensors = _tensors(wide, length) | {"spectrum": spectrum}
        library().cauchy_forward(ctypes.byref(_arguments(tensors, spectrum)))
        return spectrum

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        wide = list(ctx.saved_tensors)  # type: ignore[attr-defined]
        output, step = wide[0], wide[-1]
        grad = grad.resolve_conj().contiguous()
        names = ("to_output", "to_poles", "to_low_rank", "to_input")
        out = {name: torch.empty_like(output) for name in names}
        out["to_step"] = step.new_empty(output.shape[:2])
        tensors = _tensors(wide, ctx.length) | out | {"grad": grad}  # type: ignore[attr-defined]
        if library().cauchy_backward(ctypes.byref(_arguments(tensors, grad))):
            raise MemoryError("no memory for the gradients of the poles of a feature")
        to_output, *shared = out.values()
        grads = [to_output, *(x[0] if len(x) == 1 else x.sum(0) for x in shared)]
        types = ctx.types  # type: ignore[attr-defined]
        return *(x.to(dtype) for x, dtype in zip(grads, types, strict=True)), None


def _tensors(wide: list[Tensor], length: int) -> dict[str, Tensor]:
    """What both directions read, and room for what they make of it."""
    named = dict(zip(("output", "poles_of", "low_rank", "input", "step"), wide, strict=True))
    room = wide[-1].new_empty(18, *wide[0].shape)
    return _tables(length) | named | {"coefficients": room[:16], "trace": room[16], "square": room[17]}


@functools.lru_cache(maxsize=8)
def _tables(length: int) -> dict[str, Tensor]:
    """Sine and cosine of the half angles, filled up to whole vectors by the last: it divides by no zero."""
    circle = Circle.of(length, torch.device("cpu"))
    missing = -len(circle.sin) % LANES
    return {"sin": F.pad(circle.sin, (0, missing), value=1.0), "cos": F.pad(circle.cos, (0, missing))}


def _arguments(tensors: dict[str, Tensor], stored: Tensor) -> Any:
    """Addresses only: the caller keeps the tensors alive."""
    channels, features, n = tensors["output"].shape
    return _Arguments(
        items=channels * features, features=features, poles=n, frequencies=stored.shape[-1],
        single=stored.dtype == torch.complex64, threads=torch.get_num_threads(),
        **{name: part.data_ptr() for name, part in tensors.items()},
    )  # fmt: skip


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled loop. Raises: NoCompiler."""
    return load_library(Path(__file__).with_name("cauchy.c"), extra_flags=("-ffp-contract=fast",))
