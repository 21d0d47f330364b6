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

from shoestring.kernels.cauchy_torch import Circle, slopes_and_offsets
from shoestring.kernels.native import load_library

LANES = 8
"""Frequencies in a vector; as in `cauchy.c`."""

_SIZES = ("items", "features", "poles", "frequencies", "single", "threads")
_POINTERS = (
    *("sin", "cos", "coefficients", "trace", "square", "grad", "spectrum"),
    *("to_coefficients", "to_trace", "to_square"),
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
    with torch.autocast("cpu", enabled=False):
        wide_output, poles, low_rank, input = (
            x.to(torch.complex128) for x in (output, poles, low_rank, input)
        )
        step = step.double().unsqueeze(-1)
        scaled = poles * step
        trace, square = scaled.real, scaled.real**2 + scaled.imag**2
        rest = [(low_rank.conj() * other).expand_as(wide_output) for other in (input, low_rank)]
        products = torch.stack([wide_output * input, wide_output * low_rank, *rest])
        slope, offset = slopes_and_offsets(products, scaled, step)
        # cauchy.c says what these multiply.
        real = torch.stack([-8 * offset * square, 32 * offset - 64 * slope * trace], -1)
        imag = torch.stack([16 * slope * square - 32 * offset * trace, -64 * slope], -1)
        coefficients = torch.cat([real, imag], -1).movedim(0, -2)
        found: Tensor = _CompiledSpectrum.apply(coefficients, trace, square, length, output.dtype)
    return found


class _CompiledSpectrum(torch.autograd.Function):
    """(channels, features, frequencies) from coefficients (channels, features, n, sums, each), in float64."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, coefficients: Tensor, trace: Tensor, square: Tensor, length: int, dtype: torch.dtype
    ) -> Tensor:
        coefficients, trace, square = (x.contiguous() for x in (coefficients, trace, square))
        spectrum = torch.empty(*coefficients.shape[:2], length // 2 + 1, dtype=dtype)
        ctx.save_for_backward(coefficients, trace, square)
        ctx.length = length  # type: ignore[attr-defined]
        tensors = _tables(length) | {
            "coefficients": coefficients, "trace": trace, "square": square, "spectrum": spectrum,
        }  # fmt: skip
        library().cauchy_forward(ctypes.byref(_arguments(tensors, spectrum)))
        return spectrum

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        coefficients, trace, square = ctx.saved_tensors  # type: ignore[attr-defined]
        grad = grad.resolve_conj().contiguous()
        out = {
            "to_coefficients": torch.empty_like(coefficients),
            "to_trace": trace.new_empty(coefficients.shape[:3]),
            "to_square": trace.new_empty(coefficients.shape[:3]),
        }
        tensors = _tables(ctx.length) | out | {  # type: ignore[attr-defined]
            "coefficients": coefficients, "trace": trace, "square": square, "grad": grad,
        }  # fmt: skip
        if library().cauchy_backward(ctypes.byref(_arguments(tensors, grad))):
            raise MemoryError("no memory for the gradients of the poles of a feature")
        return out["to_coefficients"], out["to_trace"].sum(0), out["to_square"].sum(0), None, None


def _tables(length: int) -> dict[str, Tensor]:
    """Sine and cosine of the half angles, filled up to whole vectors by the last: it divides by no zero."""
    circle = Circle.of(length, torch.device("cpu"))
    missing = -len(circle.sin) % LANES
    return {"sin": F.pad(circle.sin, (0, missing), value=1.0), "cos": F.pad(circle.cos, (0, missing))}


def _arguments(tensors: dict[str, Tensor], stored: Tensor) -> Any:
    """Addresses only: the caller keeps the tensors alive."""
    channels, features, n = tensors["coefficients"].shape[:3]
    return _Arguments(
        items=channels * features, features=features, poles=n, frequencies=stored.shape[-1],
        single=stored.dtype == torch.complex64, threads=torch.get_num_threads(),
        **{name: part.data_ptr() for name, part in tensors.items()},
    )  # fmt: skip


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled loop. Raises: NoCompiler."""
    return load_library(Path(__file__).with_name("cauchy.c"), extra_flags=("-ffp-contract=fast",))
