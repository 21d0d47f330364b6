"""Rounding inside a network: rounded forwards, and backwards the identity (or the other way round).

Source: Bengio, Léonard and Courville 2013, "Estimating or Propagating Gradients Through Stochastic Neurons
for Conditional Computation", section 4 (the straight-through estimator).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.kernels.rounding import round_to_format
from shoestring.numbers.formats import FloatFormat
from shoestring.numbers.rounder import Rounder
from shoestring.numbers.rounding_bits import DRAWING_MODES

TensorRounder = Callable[[Tensor], Tensor]
"""A `Rounder`, an `IntegerQuantizer`, or any function from a tensor to one of the same shape and dtype."""


@dataclass(frozen=True)
class ZeroWhereSaturated:
    """A rounder whose straight-through gradient is zero where x lies beyond the range of its format.

    Serves wherever a rounder does, in `Rounders` too.
    """

    rounder: Rounder

    def __call__(self, x: Tensor) -> Tensor:
        return self.rounder(x)


def straight_through(x: Float[Tensor, "*shape"], rounder: TensorRounder | None) -> Float[Tensor, "*shape"]:
    """`rounder(x)`, with the gradient of the identity; `x` itself without a rounder.

    A rounder in `ZeroWhereSaturated` passes no gradient where its format ends.
    """
    if rounder is None:
        return x
    if isinstance(rounder, ZeroWhereSaturated):
        return saturating_straight_through(x, rounder.rounder)
    return _StraightThrough.apply(x, rounder)


def saturating_straight_through(x: Float[Tensor, "*shape"], rounder: Rounder) -> Float[Tensor, "*shape"]:
    """`rounder(x)`, with the gradient of the identity within the range of the format, and zero beyond."""
    return _SaturatingStraightThrough.apply(x, rounder)


def round_gradient(x: Float[Tensor, "*shape"], rounder: TensorRounder | None) -> Float[Tensor, "*shape"]:
    """`x` itself, whose gradient is rounded on the way back."""
    if rounder is None:
        return x
    return _RoundGradient.apply(x, rounder)


def round_tensor(x: Float[Tensor, "*shape"], rounder: TensorRounder) -> Float[Tensor, "*shape"]:
    """`rounder(x)` without a gradient; compiled for float formats on CPU tensors.

    Raises: ValueError for a rounder that changes the shape or the dtype.
    """
    if isinstance(rounder, Rounder) and isinstance(rounder.fmt, FloatFormat) and _is_for_loop(x):
        call = rounder.counter.take() if rounder.mode in DRAWING_MODES else 0
        return round_to_format(
            x.detach().contiguous(),
            rounder.fmt,
            rounder.mode,
            seed=rounder.seed,
            explim=rounder.explim,
            call=call,
        )
    with torch.no_grad():
        rounded = rounder(x.detach())
    if rounded.shape != x.shape or rounded.dtype != x.dtype:
        raise ValueError(
            f"the rounder {rounder} made a {tuple(rounded.shape)} tensor of {rounded.dtype} out of a "
            f"{tuple(x.shape)} one of {x.dtype}; it must keep both"
        )
    return rounded


def _is_for_loop(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounder: TensorRounder) -> Tensor:
        return round_tensor(x, rounder)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _SaturatingStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounder: Rounder) -> Tensor:
        fmt = rounder.fmt
        lowest = -fmt.xmax if isinstance(fmt, FloatFormat) else fmt.xmin
        ctx.save_for_backward((x >= lowest) & (x <= fmt.xmax))
        return round_tensor(x, rounder)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return torch.where(inside, gradient, torch.zeros_like(gradient)), None


class _RoundGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounder: TensorRounder) -> Tensor:
        ctx.rounder = rounder
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return round_tensor(gradient, ctx.rounder), None
