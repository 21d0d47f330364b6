"""Sums of geometric sequences, sum_n v_n lambda_n^l for l < L: the kernel of a diagonal state space.

The matrix of all powers (N x L) is never made. With l = i Q + j the power splits into lambda^(i Q) lambda^j,
so two tables of about sqrt(L) exponentials a pole and one batched product give all L values.

Source: Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State Space Models", section
3.3 (the product with a Vandermonde matrix); the split of the exponent is ours.
"""

import math

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from shoestring.kernels import vandermonde_compiled as compiled
from shoestring.notices import notice_fallback


def naive_vandermonde(
    coefficients: Inexact[Tensor, "*batch n"],
    log_poles: Inexact[Tensor, "*#batch n"],
    length: int,
) -> Float[Tensor, "*batch length"]:
    """Re sum_n v_n exp(l log_lambda_n), every power written out."""
    times = torch.arange(length, device=log_poles.device)
    powers = torch.exp(log_poles.unsqueeze(-1) * times)
    total = (coefficients.unsqueeze(-1) * powers).sum(-2)
    return total.real if total.is_complex() else total


def vandermonde(
    coefficients: Inexact[Tensor, "*batch n"], log_poles: Inexact[Tensor, "*#batch poles"], length: int
) -> Float[Tensor, "*batch length"]:
    """Re sum_n v_n exp(l log_lambda_n) for l < `length`, with its gradient.

    `log_poles` is broadcast over leading axes that it lacks or has with size 1. Of conjugate pairs give one
    of each and twice its coefficient. Angles are worked out in float64, which keeps float32 exact for long
    sequences; exponentials and the product have the type of the input. Takes O(N sqrt(L) + L) memory in
    place of O(N L).
    Raises: TypeError where an argument is not complex; ValueError where `length` < 1 or n differs.
    """
    for name, tensor in (("coefficients", coefficients), ("log_poles", log_poles)):
        if not tensor.is_complex():
            raise TypeError(f"{name} is {tensor.dtype}; give a complex tensor, or use real_vandermonde")
    _check(coefficients, log_poles, length)
    inner, outer = _split(length, log_poles.device)
    near_re, near_im = _powers(log_poles.real, log_poles.imag, inner)
    far_re, far_im = _powers(log_poles.real, log_poles.imag, outer)
    v_re, v_im = coefficients.real.unsqueeze(-1), coefficients.imag.unsqueeze(-1)
    left = torch.cat([v_re * far_re - v_im * far_im, -(v_re * far_im + v_im * far_re)], dim=-2)
    right = torch.cat([near_re, near_im], dim=-2)
    return (left.transpose(-1, -2) @ right).flatten(-2)[..., :length]


def real_vandermonde(
    coefficients: Inexact[Tensor, "*batch n"], log_poles: Inexact[Tensor, "*#batch poles"], length: int
) -> Float[Tensor, "*batch length"]:
    """sum_n v_n exp(l log_lambda_n) for real poles above 0, e.g. moving averages that decay as q^l.

    Arguments and errors as in `vandermonde`, which this is with angles of 0, for half the work. Of float32 on
    the CPU a compiled loop makes them, once differentiable; else torch does, which is said once on the CPU.
    Raises: TypeError where an argument is complex.
    """
    for name, tensor in (("coefficients", coefficients), ("log_poles", log_poles)):
        if tensor.is_complex():
            raise TypeError(f"{name} is {tensor.dtype}; give a real tensor, or use vandermonde")
    _check(coefficients, log_poles, length)
    if not torch.compiler.is_compiling():
        if (reason := compiled.why_not(coefficients, log_poles)) is None:
            return compiled.compiled_real_vandermonde(coefficients, log_poles, length)
        if coefficients.device.type == "cpu":
            notice_fallback("real_vandermonde", reason)
    inner, outer = _split(length, log_poles.device)
    near = torch.exp(log_poles.unsqueeze(-1) * inner)
    far = coefficients.unsqueeze(-1) * torch.exp(log_poles.unsqueeze(-1) * outer)
    return (far.transpose(-1, -2) @ near).flatten(-2)[..., :length]


def _check(coefficients: Tensor, log_poles: Tensor, length: int) -> None:
    if length < 1:
        raise ValueError(f"length={length} must be at least 1")
    if coefficients.shape[-1] != log_poles.shape[-1]:
        raise ValueError(
            f"coefficients has n={coefficients.shape[-1]} and log_poles n={log_poles.shape[-1]}; give one "
            "coefficient a pole"
        )


def _split(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The times j < Q and i Q that add up to every l < `length`."""
    width = math.isqrt(length - 1) + 1
    rows = -(-length // width)
    return torch.arange(width, device=device), torch.arange(rows, device=device) * width


def _powers(log_re: Tensor, log_im: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of exp(l (re + i im)), (..., n, times).

    An angle of thousands of turns keeps its digits only in float64; sine and cosine of the remainder need no
    more than the type of the input.
    """
    turns = log_im.unsqueeze(-1).double() * (times.double() / (2 * math.pi))
    angle = ((turns - turns.round()) * (2 * math.pi)).to(log_im.dtype)
    size = torch.exp(log_re.unsqueeze(-1) * times)
    return size * torch.cos(angle), size * torch.sin(angle)
