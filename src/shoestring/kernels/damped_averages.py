"""Damped averages of the features of a sequence, a few for each, as a compiled recurrence for the CPU.

    h_n[t] = (1 − damping_n) h_n[t−1] + x[t],  y[t] = skip · x[t] + Σ_n weight_n h_n[t]

As long as there are few averages a feature, going through the tokens once costs less than the transforms of a
convolution of any length: 2 multiply-adds an average and token, read and written in the order of the memory.

Source: Ma et al. 2023, "Mega: Moving Average Equipped Gated Attention", section 3.1.
"""

import ctypes
import functools
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import count_cost
from shoestring.kernels.native import load_library

MOST_STATES, CHUNK = 32, 32
"""The most averages of a feature, and tokens between averages that are kept; as in `damped_averages.c`."""
_TERMS_OF_A_THREAD = 1 << 20
"""Waking a thread that sleeps takes as long as this many."""


def why_not(x: Tensor, damping: Tensor) -> str | None:
    """Why the compiled recurrence cannot do it; None where it can."""
    if x.device.type != "cpu":
        return f"a convolution answers on {x.device}: the compiled recurrence is for CPUs"
    if torch.float32 != x.dtype or torch.float32 != damping.dtype:
        return f"a convolution answers for {x.dtype}: the compiled recurrence computes in float32"
    if damping.shape[-1] > MOST_STATES:
        return f"a convolution answers: {damping.shape[-1]} averages are more than {MOST_STATES}"
    try:
        _library()
    except NoCompiler as error:
        return f"a convolution answers instead of the compiled recurrence ({error})"
    return None


def damped_averages(
    x: Float[Tensor, "batch seq dim"],
    damping: Float[Tensor, "..."],
    weight: Float[Tensor, "..."],
    skip: Float[Tensor, "..."],
    *,
    reverse: bool = False,
) -> Float[Tensor, "batch seq dim"]:
    """The equation above, float32 on the CPU (`why_not`). damping, weight (dim, averages); skip (dim).

    reverse: from the last token to the first. Once differentiable; the averages of every 32nd token are kept
    for that. Raises: NoCompiler; ValueError for shapes that do not fit.
    """
    dim = x.shape[2]
    if damping.ndim != 2 or len(damping) != dim or weight.shape != damping.shape or skip.shape != (dim,):
        raise ValueError(
            f"damping is {tuple(damping.shape)}, weight {tuple(weight.shape)} and skip {tuple(skip.shape)}; "
            f"x of {dim} features takes ({dim}, averages) twice and ({dim},)"
        )
    y: Tensor = _DampedAverages.apply(x, damping, weight, skip, reverse)
    return y


def naive_damped_averages(
    x: Float[Tensor, "batch seq dim"],
    damping: Float[Tensor, "dim averages"],
    weight: Float[Tensor, "dim averages"],
    skip: Float[Tensor, " dim"],
    *,
    reverse: bool = False,
) -> Float[Tensor, "batch seq dim"]:
    """The equation, token by token."""
    steps = x.flip(1) if reverse else x
    h, out = torch.zeros(len(x), *damping.shape, dtype=x.dtype), []
    for now in steps.unbind(1):
        h = (1 - damping) * h + now.unsqueeze(-1)
        out.append(skip * now + (weight * h).sum(-1))
    y = torch.stack(out, 1)
    return y.flip(1) if reverse else y


class _DampedAverages(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, damping: Tensor, weight: Tensor, skip: Tensor, reverse: bool
    ) -> Tensor:
        x = x.contiguous()
        maps = damping.T.contiguous(), weight.T.contiguous(), skip.contiguous()
        batch, seq, dim = x.shape
        y = torch.empty_like(x)
        kept = None
        if any(ctx.needs_input_grad):  # type: ignore[attr-defined]
            kept = x.new_empty(batch, -(-seq // CHUNK), damping.shape[1], dim)
        with count_cost("damped_averages", flops=5 * x.numel() * damping.shape[1], bytes=2 * x.nbytes):
            _library().damped_averages_forward(_arguments(x, *maps, reverse, y=y, kept=kept))
        ctx.save_for_backward(x, *maps, kept)  # type: ignore[arg-type]
        ctx.reverse = reverse  # type: ignore[attr-defined]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, damping, weight, skip, kept = ctx.saved_tensors  # type: ignore[attr-defined]
        grads = {
            "grad_x": torch.empty_like(x),
            "grad_damping": x.new_empty(len(x), *damping.shape),
            "grad_weight": x.new_empty(len(x), *damping.shape),
            "grad_skip": x.new_empty(len(x), len(skip)),
        }
        with count_cost("damped_averages_backward", flops=13 * x.numel() * len(damping), bytes=3 * x.nbytes):
            reverse = ctx.reverse  # type: ignore[attr-defined]
            _library().damped_averages_backward(
                _arguments(x, damping, weight, skip, reverse, kept=kept, grad=grad.contiguous(), **grads)
            )
        of_damping, of_weight = (grads[name].sum(0).T for name in ("grad_damping", "grad_weight"))
        return grads["grad_x"], of_damping, of_weight, grads["grad_skip"].sum(0), None


class _Pointers(ctypes.Structure):
    """The C struct `damped_averages`."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("batch", "seq", "dim", "states", "is_reversed", "threads")),
        *((n, ctypes.c_void_p) for n in ("x", "damping", "weight", "skip", "y", "kept", "grad", "grad_x")),
        *((n, ctypes.c_void_p) for n in ("grad_damping", "grad_weight", "grad_skip")),
    )


def _arguments(
    x: Tensor, damping: Tensor, weight: Tensor, skip: Tensor, reverse: bool, **others: Tensor | None
) -> object:
    pointers = {"x": x, "damping": damping, "weight": weight, "skip": skip, **others}
    threads = min(torch.get_num_threads(), 1 + x.numel() * len(damping) // _TERMS_OF_A_THREAD)
    given = {name: part.data_ptr() for name, part in pointers.items() if part is not None}
    return ctypes.byref(_Pointers(*x.shape, len(damping), reverse, threads, **given))


@functools.cache
def _library() -> ctypes.CDLL:
    return load_library(Path(__file__).with_suffix(".c"), extra_flags=("-ffp-contract=fast",))
