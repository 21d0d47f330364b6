"""Depthwise causal convolution along time, the short one before a selective scan; compiled for the CPU.

Sequences are (batch, seq, channels). What a layer carries from one call to the next is its last width - 1
inputs: `prefill_conv1d` takes and returns them, `step_conv1d` reads one position.

Source: Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", section 3.4.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import Cost, states_cost
from shoestring.kernels.native import load_library
from shoestring.notices import notice_fallback

TILE = 64
"""Positions that a thread takes at a time; as in `causal_conv1d.c`."""
MOST_WIDTH = 64
"""The widest kernel that is compiled."""

Sequence = Float[Tensor, "batch seq channels"]
Weight = Float[Tensor, "_channels width"]
Bias = Float[Tensor, "_channels"]
Before = Float[Tensor, "_batch _before _channels"]


def naive_causal_conv1d(
    x: Sequence, weight: Weight, bias: Bias | None = None, *, silu: bool = False, reverse: bool = False
) -> Sequence:
    """The equation, a shifted product for each tap. Arguments as in `causal_conv1d`."""
    width, seq = weight.shape[1], x.shape[1]
    padded = F.pad(x, (0, 0, 0, width - 1) if reverse else (0, 0, width - 1, 0))
    taps = reversed(range(width)) if reverse else range(width)
    y = torch.zeros_like(x) if bias is None else bias.expand_as(x)
    for start, k in enumerate(taps):
        y = y + weight[:, k] * padded[:, start : start + seq]
    return F.silu(y) if silu else y


def _cost(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, silu: bool = False, reverse: bool = False
) -> Cost:
    return Cost(2 * x.numel() * weight.shape[1], 2 * x.nbytes + weight.nbytes)


@states_cost(_cost)
def causal_conv1d(
    x: Sequence, weight: Weight, bias: Bias | None = None, *, silu: bool = False, reverse: bool = False
) -> Sequence:
    """y[t] = Σ_k weight[:, k] x[t − width + 1 + k] + bias, then SiLU if asked; x is 0 before its start.

    reverse: the mirror image in time, y[t] = Σ_k weight[:, k] x[t + width − 1 − k]: nothing earlier is seen.
    On the CPU a compiled loop computes in float32, forward and backward, whatever narrower type x has; for
    other devices, float64, or without a compiler torch answers, which is said once.

    Raises: ValueError for an empty sequence, or a weight or bias of other channels than x.
    """
    _check(x, weight, bias)
    if (reason := _why_torch(x, weight)) is None:
        arguments = (part if part is None else part.float() for part in (x, weight, bias))
        y: Tensor = _CausalConv1d.apply(*arguments, silu, reverse)
        return y.to(x.dtype)
    notice_fallback("causal_conv1d", reason)
    if reverse:
        x = x.flip(1)
    padded = F.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    bias = None if bias is None else bias.to(x.dtype)
    y = F.conv1d(padded, weight[:, None].to(x.dtype), bias, groups=x.shape[2]).transpose(1, 2)
    y = F.silu(y) if silu else y
    return y.flip(1) if reverse else y


def prefill_conv1d(
    x: Sequence, before: Before, weight: Weight, bias: Bias | None = None, *, silu: bool = False
) -> tuple[Sequence, Before]:
    """The convolution of x after `before`, the width - 1 inputs that precede it, and those of what follows.

    Raises: ValueError for another number of inputs before; else as `causal_conv1d`.
    """
    _check_before(x, before, weight)
    joined = torch.cat([before.to(x.dtype), x], 1)
    y = causal_conv1d(joined, weight, bias, silu=silu)[:, before.shape[1] :]
    # A copy: a window on `joined` would keep all of the sequence.
    return y, joined[:, x.shape[1] :].to(before.dtype, copy=True)


def step_conv1d(
    x: Float[Tensor, "batch channels"],
    before: Before,
    weight: Weight,
    bias: Bias | None = None,
    *,
    silu: bool = False,
) -> tuple[Float[Tensor, "batch channels"], Before]:
    """The convolution at one position, and the inputs before the next; errors as `prefill_conv1d`."""
    _check_before(x[:, None], before, weight)
    window = torch.cat([before.to(x.dtype), x[:, None]], 1)
    y = torch.einsum("bwe,ew->be", window, weight.to(x.dtype))
    y = y if bias is None else y + bias.to(x.dtype)
    return (F.silu(y) if silu else y), window[:, 1:].to(before.dtype)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.shape[1] == 0:
        raise ValueError(f"x is {tuple(x.shape)}; a convolution needs a seq of at least 1")
    for name, part in (("weight", weight), ("bias", bias)):
        if part is not None and part.shape[0] != x.shape[2]:
            raise ValueError(f"{name} is for {part.shape[0]} channels, x has {x.shape[2]}")


def _check_before(x: Tensor, before: Tensor, weight: Tensor) -> None:
    wanted = (x.shape[0], weight.shape[1] - 1, x.shape[2])
    if before.shape != wanted:
        raise ValueError(f"before is {tuple(before.shape)}; a width of {weight.shape[1]} takes {wanted}")


def _why_torch(x: Tensor, weight: Tensor) -> str | None:
    """Why the compiled loop cannot do it; None where it can."""
    if x.device.type != "cpu":
        return f"torch's convolution answers on {x.device}: the compiled loop is for CPUs"
    if x.dtype == torch.float64:
        return "torch's convolution answers for float64: the compiled loop computes in float32"
    if weight.shape[1] > MOST_WIDTH:
        return f"torch's convolution answers: a width of {weight.shape[1]} is above {MOST_WIDTH}"
    try:
        _library()
    except NoCompiler as error:
        return f"torch's convolution answers instead of the compiled loop ({error})"
    return None


class _Arguments(ctypes.Structure):
    """The C struct `causal_conv1d`."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("batch", "seq", "channels", "width", "row")),
        *((n, ctypes.c_int64) for n in ("silu", "reverse", "threads")),
        *((n, ctypes.c_void_p) for n in ("x", "weight", "bias", "y")),
        *((n, ctypes.c_void_p) for n in ("grad_y", "grad_x", "grad_weight", "grad_bias")),
    )


def rows_of(x: Sequence) -> Sequence:
    """x itself where its positions lie at one distance and its channels side by side, else a copy."""
    regular = x.stride(2) == 1 and x.stride(0) == x.stride(1) * x.shape[1]
    return x if regular or (x.shape[0] == 1 and x.stride(2) == 1) else x.contiguous()


class _CausalConv1d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
    ) -> Tensor:
        x, taps = rows_of(x), weight.T.contiguous()
        bias = None if bias is None else bias.contiguous()
        y = x.new_empty(x.shape)
        _library().causal_conv1d_forward(_arguments(x, taps, bias, silu, reverse, y=y))
        ctx.save_for_backward(x, taps, bias)  # type: ignore[arg-type]
        ctx.options = silu, reverse  # type: ignore[attr-defined]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, bias = ctx.saved_tensors  # type: ignore[attr-defined]
        tiles = x.shape[0] * -(-x.shape[1] // TILE)
        grads = {
            "grad_y": grad.contiguous(),
            "grad_x": x.new_empty(x.shape),
            "grad_weight": x.new_empty(tiles, *taps.shape),
            "grad_bias": x.new_empty(tiles, x.shape[2]),
        }
        silu, reverse = ctx.options  # type: ignore[attr-defined]
        _library().causal_conv1d_backward(_arguments(x, taps, bias, silu, reverse, **grads))
        of_bias = None if bias is None else grads["grad_bias"].sum(0)
        return grads["grad_x"], grads["grad_weight"].sum(0).T, of_bias, None, None


def _arguments(
    x: Tensor, taps: Tensor, bias: Tensor | None, silu: bool, reverse: bool, **others: Tensor
) -> Any:
    batch, seq, channels = x.shape
    pointers = {"x": x, "weight": taps, **others} | ({} if bias is None else {"bias": bias})
    return ctypes.byref(
        _Arguments(
            batch=batch, seq=seq, channels=channels, width=len(taps), row=x.stride(1), silu=silu,
            reverse=reverse, threads=torch.get_num_threads(),
            **{name: part.data_ptr() for name, part in pointers.items()},
        )
    )  # fmt: skip


@functools.cache
def _library() -> ctypes.CDLL:
    return load_library(Path(__file__).with_suffix(".c"), extra_flags=("-ffp-contract=fast",))
