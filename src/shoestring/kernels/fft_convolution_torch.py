"""Long convolutions by torch's transforms, for what the compiled loop does not do.

`kernels.fft_convolution` has the equation. A transform of n points is circular, so n is at least as long as
the full result, and among those lengths the next one that is a product of small primes, which transforms
several times faster than its neighbours.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_BYTES = 6 << 20
"""On a CPU so much of the padded signal is convolved at a time: the spectra of all of it would go through
memory, and through the operating system, which clears new pages, at each step."""


def fft_length(n: int) -> int:
    """The least even number 2^a 3^b 5^c that is not below `n`: a length that transforms fast.

    Raises: ValueError for n < 1.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    best = 2
    while best < n:
        best *= 2
    fives = 1
    while fives < best:
        threes = fives
        while threes < best:
            length = 2 * threes
            while length < n:
                length *= 2
            best = min(best, length)
            threes *= 3
        fives *= 5
    return best


class _Transform:
    """`rfft` of n points. On a CPU it pads in one buffer, which serves block after block."""

    def __init__(self, n: int) -> None:
        self._n, self._room = n, torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        if x.device.type != "cpu" or torch.compiler.is_compiling() or length == self._n:
            return torch.fft.rfft(x, self._n)
        shape = *x.shape[:-1], self._n
        if self._room.dtype != x.dtype or self._room.numel() < math.prod(shape):
            self._room = x.new_empty(math.prod(shape))
        padded = self._room[: math.prod(shape)].view(shape)
        padded[..., :length] = x
        padded[..., length:] = 0
        return torch.fft.rfft(padded)


class TorchConvolution(torch.autograd.Function):
    """Circular convolution of n points, cropped to the signal; either the kernel or its spectrum is given."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor | None, spectrum: Tensor | None, n: int) -> Tensor:
        ctx.n = n
        ctx.save_for_backward(u if kernel is not None else None, kernel, spectrum)
        copies = _of_one(kernel, spectrum).shape[0]
        y = u.new_empty(*u.shape[:-2], copies, *u.shape[-2:])
        transform = _Transform(n)
        for block in _channel_blocks(u, copies, n):
            transformed = transform(u[..., block, :]).unsqueeze(-3)
            check_finite(transformed)
            factor = _spectrum_of(kernel, spectrum, block, transform)
            product = transformed.mul_(factor) if copies == 1 else transformed * factor
            y[..., block, :] = torch.fft.irfft(product, n)[..., : u.shape[-1]]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (u, kernel, spectrum), n = ctx.saved_tensors, ctx.n
        to_u = to_kernel = None
        if ctx.needs_input_grad[0]:
            to_u = grad.new_empty(*grad.shape[:-3], *grad.shape[-2:])
        if ctx.needs_input_grad[1]:
            to_kernel = torch.empty_like(kernel)
        transform = _Transform(n)
        for block in _channel_blocks(grad, 1, n):
            transformed = transform(grad[..., block, :])
            if to_u is not None:
                product = (transformed * _spectrum_of(kernel, spectrum, block, transform).conj()).sum(-3)
                to_u[..., block, :] = torch.fft.irfft(product, n)[..., : grad.shape[-1]]
            if to_kernel is not None:
                product = transform(u[..., block, :]).conj().unsqueeze(-3) * transformed
                product = product.reshape(-1, *product.shape[-3:]).sum(0)
                to_kernel[:, block] = torch.fft.irfft(product, n)[..., : kernel.shape[-1]]
        return to_u, to_kernel, None, None


def _channel_blocks(u: Tensor, copies: int, n: int) -> list[slice]:
    """The channels in like parts up to BLOCK_BYTES; all at once on a GPU or for a compiler, which fuses."""
    channels = u.shape[-2]
    if u.device.type != "cpu" or torch.compiler.is_compiling():
        return [slice(0, channels)]
    rows = u.numel() // (channels * u.shape[-1]) * copies
    most = max(1, BLOCK_BYTES // (rows * n * u.element_size()))
    size = -(-channels // -(-channels // most))  # a small rest at the end would leave threads idle
    return [slice(start, start + size) for start in range(0, channels, size)]


def _of_one(kernel: Tensor | None, spectrum: Tensor | None) -> Tensor:
    found = kernel if spectrum is None else spectrum
    assert found is not None
    return found


def _spectrum_of(
    kernel: Tensor | None, spectrum: Tensor | None, block: slice, transform: _Transform
) -> Tensor:
    part = _of_one(kernel, spectrum)[:, block]
    return part if spectrum is not None else transform(part)


def check_finite(transformed: Tensor) -> None:
    """Frequency 0 is the sum of a row: one NaN anywhere makes it NaN."""
    if transformed.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if not transformed[..., 0].real.isfinite().all():
        raise ValueError("u holds NaN or infinity, or overflows; the transform would spread it to every step")
