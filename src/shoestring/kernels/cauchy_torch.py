"""The spectrum of a diagonal plus low rank state space by torch, on blocks of features.

`kernels.cauchy` has the equation. On the unit circle a and e are 4i sin(pi k / L) and 2 cos(pi k / L) times
one phase sqrt(w), which leaves real arithmetic and one reciprocal for all sums.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

BLOCK_BYTES = {"cpu": 2**19, "cuda": 2**26}
"""Largest block of (features, poles, frequencies) complex numbers: on a processor it should stay in cache."""


def blocked_spectrum(
    output: Complex[Tensor, "channels features n"],
    poles: Complex[Tensor, "features n"],
    low_rank: Complex[Tensor, "features n"],
    input: Complex[Tensor, "features n"],
    step: Float[Tensor, " features"],
    length: int,
    *,
    block_bytes: int | None = None,
) -> Complex[Tensor, "channels features frequencies"]:
    """As `dplr_spectrum`, of an even length; blocks take at most `block_bytes` (default: `BLOCK_BYTES`).

    The backward pass makes the blocks again instead of keeping them.
    """
    output, poles, low_rank, input = (x.to(torch.complex128) for x in (output, poles, low_rank, input))
    wide = step.double().unsqueeze(-1)
    own = torch.stack([low_rank.conj() * input, low_rank.conj() * low_rank])
    scaled = poles * wide
    products = torch.cat([output * input, output * low_rank, own])
    weights = torch.cat(slopes_and_offsets(products, scaled, wide)).transpose(0, 1)
    trace, square = scaled.real.to(step.dtype), scaled.real**2 + scaled.imag**2
    limit = block_bytes or BLOCK_BYTES.get(poles.device.type, BLOCK_BYTES["cuda"])
    spectrum: Tensor = _Spectrum.apply(weights, trace, square, length, limit)
    return spectrum.transpose(0, 1)


def slopes_and_offsets(
    products: Complex[Tensor, "*sums features n"], scaled: Complex[Tensor, "features n"], step: Tensor
) -> tuple[Float[Tensor, "*sums features n"], Float[Tensor, "*sums features n"]]:
    """What multiplies a and e in the sum of `products`, of which the factors 2 dt and 2 are part.

    scaled: dt Lambda. step: (features, 1).
    """
    return 4 * step * products.real, 4 * step * (products * scaled.conj()).real


@dataclass(frozen=True)
class Circle:
    """What depends on the frequency alone, of half its angle: sine, cosine and sqrt(1 / w), in float64."""

    sin: Float[Tensor, " frequencies"]
    cos: Float[Tensor, " frequencies"]
    turn: Complex[Tensor, " frequencies"]

    @staticmethod
    def of(length: int, device: torch.device) -> "Circle":
        half = torch.arange(length // 2 + 1, dtype=torch.float64, device=device) * (math.pi / length)
        sin, cos = torch.sin(half), torch.cos(half)
        cos[-1] = 0.0  # of pi / 2, rounded
        return Circle(sin, cos, torch.complex(cos, sin))


class _Spectrum(torch.autograd.Function):
    """The spectrum, (features, channels, frequencies), from real coefficients of the sums."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, trace: Tensor, square: Tensor, length: int, limit: int) -> Tensor:
        """weights (features, 2 sums, n): slopes, then offsets; trace, square: Re and |.|^2 of dt Lambda."""
        ctx.save_for_backward(weights, trace, square)
        ctx.length, ctx.limit = length, limit
        circle = Circle.of(length, trace.device)
        features, double_sums, _ = weights.shape
        spectrum = torch.empty(
            features,
            double_sums // 4 - 1,
            length // 2 + 1,
            dtype=trace.dtype.to_complex(),
            device=trace.device,
        )
        with torch.autocast(weights.device.type, enabled=False):
            for part in _blocks(trace, length, limit):
                halves = _sums(weights[part], _reciprocals(trace[part], square[part], circle))
                spectrum[part] = _combine(halves, circle)
        return spectrum

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients, block by block."""
        weights, trace, square = ctx.saved_tensors
        circle = Circle.of(ctx.length, trace.device)
        to_weights, to_trace, to_square = (torch.empty_like(x) for x in (weights, trace, square))
        with torch.autocast(weights.device.type, enabled=False):
            for part in _blocks(trace, ctx.length, ctx.limit):
                reciprocals = _reciprocals(trace[part], square[part], circle)
                with torch.enable_grad():
                    halves = _sums(weights[part], reciprocals).requires_grad_()
                    combined = _combine(halves, circle)
                    (to_halves,) = torch.autograd.grad(combined, halves, grad[part].to(combined.dtype))
                del halves, combined
                to_halves = to_halves.flatten(-2).to(trace.dtype)
                to_weights[part] = to_halves @ reciprocals.flatten(-2).mT
                to_reciprocals = (weights[part].mT.to(trace.dtype) @ to_halves).view_as(reciprocals)
                to_trace[part], to_square[part] = _through_reciprocals(reciprocals, to_reciprocals, circle)
        return to_weights, to_trace, to_square, None, None


def _blocks(trace: Tensor, length: int, limit: int) -> list[slice]:
    """Features in blocks whose reciprocals take at most `limit` bytes, and at least one feature each."""
    features, n = trace.shape
    each = max(1, limit // (2 * trace.element_size() * n * (length // 2 + 1)))
    return [slice(first, first + each) for first in range(0, features, each)]


def _reciprocals(trace: Tensor, square: Tensor, circle: Circle) -> Tensor:
    """w over the denominator of each pair, (features, n, real and imaginary part, frequencies).

    The denominator over w is 4 cos^2 |lambda|^2 - 16 sin^2 - 16i sin cos Re lambda.
    """
    real = torch.addcmul(-16 * circle.sin**2, square.unsqueeze(-1), 4 * circle.cos**2).to(trace.dtype)
    imag = trace.unsqueeze(-1) * (16 * circle.sin * circle.cos).to(trace.dtype)
    scale = (real * real).addcmul_(imag, imag).reciprocal_()
    found = torch.empty(*square.shape, 2, len(circle.sin), dtype=trace.dtype, device=trace.device)
    torch.mul(real, scale, out=found[..., 0, :])
    torch.mul(imag, scale, out=found[..., 1, :])
    return found


def _sums(weights: Tensor, reciprocals: Tensor) -> Tensor:
    """(features, 2 sums, real and imaginary part, frequencies)."""
    flat = weights @ reciprocals.flatten(-2).to(weights.dtype)
    return flat.view(*weights.shape[:2], *reciprocals.shape[-2:])


def _combine(halves: Tensor, circle: Circle) -> Tensor:
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


def _through_reciprocals(found: Tensor, grad: Tensor, circle: Circle) -> tuple[Tensor, Tensor]:
    """Gradients of trace and square, from those of r = 1 / (x - i y): dr = -r^2 (dx - i dy)."""
    re, im = found.unbind(-2)
    to_re, to_im = grad.unbind(-2)
    squared_re, squared_im = (re * re).addcmul_(im, im, value=-1), (re * im).mul_(2)
    to_x = (squared_re * to_re).addcmul_(squared_im, to_im).neg_()
    to_y = (squared_re * to_im).addcmul_(squared_im, to_re, value=-1)
    by_trace, by_square = (x.to(to_x.dtype) for x in (16 * circle.sin * circle.cos, 4 * circle.cos**2))
    return to_y @ by_trace, to_x @ by_square
