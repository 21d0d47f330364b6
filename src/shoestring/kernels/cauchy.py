"""The spectrum of a state space whose matrix is diagonal plus low rank: sums over poles, then a correction.

With w = exp(-2 pi i k / L), a = 2 (1 - w), e = 1 + w, one pair of conjugate poles adds to the sum s(v)

    2 dt [2 Re(v) a - 2 dt Re(v conj(Lambda)) e] / [a^2 - 2 dt Re(Lambda) a e + dt^2 |Lambda|^2 e^2]

and the spectrum is s(C B) - s(C P) s(conj(P) B) e / (2 + e s(|P|^2)), by Woodbury. On the unit circle a and e
are 4i sin(pi k / L) and 2 cos(pi k / L) times one phase sqrt(w), which leaves real arithmetic, one reciprocal
for all four sums, and no division by e, which is 0 at w = -1.

Source: Gu et al. 2021, "Efficiently Modeling Long Sequences with Structured State Spaces", appendix C.3;
rearranged.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

BLOCK_BYTES = {"cpu": 2**20, "cuda": 2**26}
"""Largest block of (features, poles, frequencies) complex numbers: on a processor it should stay in cache."""


def naive_pair_sum(
    v: Complex[Tensor, "... n"],
    poles: Complex[Tensor, "*#dims n"],
    step: Float[Tensor, "*#dims"],
    length: int,
) -> Complex[Tensor, "... frequencies"]:
    """s(v) at w_k = exp(-2 pi i k / length), k = 0 .. length / 2, as the equation has it."""
    w = _unit_circle(length, poles)
    a, e = 2 * (1 - w), 1 + w
    v, lam, dt = v.unsqueeze(-1), poles.unsqueeze(-1), step[..., None, None]
    top = 2 * v.real * a - 2 * dt * (v * lam.conj()).real * e
    bottom = a**2 - 2 * dt * lam.real * a * e + dt**2 * lam.abs() ** 2 * e**2
    return (2 * dt * top / bottom).sum(-2)


def naive_dplr_spectrum(
    output: Complex[Tensor, "channels features n"],
    poles: Complex[Tensor, "features n"],
    low_rank: Complex[Tensor, "features n"],
    input: Complex[Tensor, "features n"],
    step: Float[Tensor, " features"],
    length: int,
) -> Complex[Tensor, "channels features frequencies"]:
    """As `dplr_spectrum`: four sums, then the correction, everything in memory at once."""

    def s(v: Tensor) -> Tensor:
        return naive_pair_sum(v, poles, step, length)

    e = 1 + _unit_circle(length, poles)
    correction = (
        s(output * low_rank) * s(low_rank.conj() * input) * e / (2 + e * s(low_rank.conj() * low_rank))
    )
    return s(output * input) - correction


def dplr_spectrum(
    output: Complex[Tensor, "channels features n"],
    poles: Complex[Tensor, "features n"],
    low_rank: Complex[Tensor, "features n"],
    input: Complex[Tensor, "features n"],
    step: Float[Tensor, " features"],
    length: int,
    *,
    block_bytes: int | None = None,
) -> Complex[Tensor, "channels features frequencies"]:
    """C_t (1 - w Ad)^-1 Bd on half of the unit circle, where A = diag(poles) - P P^*, by the bilinear rule.

    Poles come one of each conjugate pair. With C_t = C (I - Ad^length), `irfft` of the result are the taps
    C Ad^l Bd. Works on blocks of features of at most `block_bytes` (default: `BLOCK_BYTES` of the device);
    the backward pass makes the blocks again instead of keeping them. There is no second derivative.
    frequencies = length / 2 + 1. Raises: ValueError where `length` is odd or below 2.
    """
    if length < 2 or length % 2:
        raise ValueError(
            f"length={length} must be even and at least 2; use {max(2, length + length % 2)} and crop"
        )
    own = torch.stack([low_rank.conj() * input, low_rank.conj() * low_rank])
    products = torch.cat([output * input, output * low_rank, own])
    dt = step[:, None]
    scaled = poles * dt
    slope = 4 * dt * products.real
    offset = 4 * dt * (products * scaled.conj()).real
    weights = torch.cat([slope, offset]).transpose(0, 1)
    square = scaled.real**2 + scaled.imag**2
    limit = block_bytes or BLOCK_BYTES.get(poles.device.type, BLOCK_BYTES["cuda"])
    spectrum: Tensor = _Spectrum.apply(weights, scaled.real, square, length, limit)
    return spectrum.transpose(0, 1)


@dataclass(frozen=True)
class _Circle:
    """What depends on the frequency alone: sine and cosine of half the angle, and sqrt(1 / w)."""

    sin: Float[Tensor, " frequencies"]
    cos: Float[Tensor, " frequencies"]
    turn: Complex[Tensor, " frequencies"]

    @staticmethod
    def of(length: int, like: Tensor) -> "_Circle":
        half = torch.arange(length // 2 + 1, dtype=torch.float64, device=like.device) * (math.pi / length)
        sin, cos = torch.sin(half), torch.cos(half)
        cos[-1] = 0.0  # of pi / 2, rounded
        sin, cos = sin.to(like.dtype), cos.to(like.dtype)
        return _Circle(sin, cos, torch.complex(cos, sin))


class _Spectrum(torch.autograd.Function):
    """The spectrum, (features, channels, frequencies), from real coefficients of the sums."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, trace: Tensor, square: Tensor, length: int, limit: int) -> Tensor:
        """weights (features, 2 sums, n): slopes, then offsets; trace, square: Re and |.|^2 of dt Lambda."""
        ctx.save_for_backward(weights, trace, square)
        ctx.length, ctx.limit = length, limit
        circle = _Circle.of(length, weights)
        features, double_sums, _ = weights.shape
        spectrum = circle.turn.new_empty(features, double_sums // 4 - 1, length // 2 + 1)
        with torch.autocast(weights.device.type, enabled=False):
            for part in _blocks(square, length, limit):
                halves = _sums(weights[part], _reciprocals(trace[part], square[part], circle))
                spectrum[part] = _combine(halves, circle)
        return spectrum

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients, block by block."""
        weights, trace, square = ctx.saved_tensors
        circle = _Circle.of(ctx.length, weights)
        to_weights, to_trace, to_square = (torch.empty_like(x) for x in (weights, trace, square))
        with torch.autocast(weights.device.type, enabled=False):
            for part in _blocks(square, ctx.length, ctx.limit):
                reciprocals = _reciprocals(trace[part], square[part], circle)
                with torch.enable_grad():
                    halves = _sums(weights[part], reciprocals).requires_grad_()
                    (to_halves,) = torch.autograd.grad(_combine(halves, circle), halves, grad[part])
                del halves
                to_weights[part] = to_halves.flatten(-2) @ reciprocals.flatten(-2).mT
                to_reciprocals = (weights[part].mT @ to_halves.flatten(-2)).view_as(reciprocals)
                to_trace[part], to_square[part] = _through_reciprocals(reciprocals, to_reciprocals, circle)
        return to_weights, to_trace, to_square, None, None


def _blocks(square: Tensor, length: int, limit: int) -> list[slice]:
    """Features in blocks whose reciprocals take at most `limit` bytes, and at least one feature each."""
    features, n = square.shape
    each = max(1, limit // (2 * square.element_size() * n * (length // 2 + 1)))
    return [slice(first, first + each) for first in range(0, features, each)]


def _reciprocals(trace: Tensor, square: Tensor, circle: _Circle) -> Tensor:
    """w over the denominator of each pair, (features, n, real and imaginary part, frequencies).

    The denominator over w is 4 cos^2 |lambda|^2 - 16 sin^2 - 16i sin cos Re lambda.
    """
    real = torch.addcmul(-16 * circle.sin**2, square.unsqueeze(-1), 4 * circle.cos**2)
    imag = trace.unsqueeze(-1) * (16 * circle.sin * circle.cos)
    scale = (real * real).addcmul_(imag, imag).reciprocal_()
    found = torch.empty(*square.shape, 2, len(circle.sin), dtype=square.dtype, device=square.device)
    torch.mul(real, scale, out=found[..., 0, :])
    torch.mul(imag, scale, out=found[..., 1, :])
    return found


def _sums(weights: Tensor, reciprocals: Tensor) -> Tensor:
    """(features, 2 sums, real and imaginary part, frequencies)."""
    flat = weights @ reciprocals.flatten(-2)
    return flat.view(*weights.shape[:2], *reciprocals.shape[-2:])


def _combine(halves: Tensor, circle: _Circle) -> Tensor:
    """The spectrum (features, channels, frequencies) from slopes and offsets of the four kinds of sums.

    Each sum is, up to the phase, S = 4i sin slope - 2 cos offset; slopes and offsets bring the factor 4 dt.
    """
    slope, offset = halves.chunk(2, dim=1)
    real = -circle.sin * slope[..., 1, :] - 0.5 * circle.cos * offset[..., 0, :]
    imag = circle.sin * slope[..., 0, :] - 0.5 * circle.cos * offset[..., 1, :]
    sums = 4 * torch.complex(real, imag)
    channels = sums.shape[1] // 2 - 1
    s00, s01, s10, s11 = sums.split([channels, channels, 1, 1], dim=1)
    return circle.turn * (s00 - circle.cos * s01 * s10 / (1 + circle.cos * s11))


def _through_reciprocals(found: Tensor, grad: Tensor, circle: _Circle) -> tuple[Tensor, Tensor]:
    """Gradients of trace and square, from those of r = 1 / (x - i y): dr = -r^2 (dx - i dy)."""
    re, im = found.unbind(-2)
    to_re, to_im = grad.unbind(-2)
    squared_re, squared_im = (re * re).addcmul_(im, im, value=-1), (re * im).mul_(2)
    to_x = (squared_re * to_re).addcmul_(squared_im, to_im).neg_()
    to_y = (squared_re * to_im).addcmul_(squared_im, to_re, value=-1)
    return to_y @ (16 * circle.sin * circle.cos), to_x @ (4 * circle.cos**2)


def _unit_circle(length: int, like: Tensor) -> Tensor:
    angle = torch.arange(length // 2 + 1, dtype=torch.float64, device=like.device) * (-2 * math.pi / length)
    return torch.polar(torch.ones_like(angle), angle).to(like.dtype)
