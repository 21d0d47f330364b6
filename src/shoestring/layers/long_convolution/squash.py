"""What keeps a freely learned kernel of a long convolution smooth in frequency, and how it starts.

Source: Fu et al. 2023, "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", section 3.1, and
the authors' code for the windows and the initial values.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

LongKernel = Float[Tensor, "*copies channels lags"]
Smoothing = Callable[[LongKernel], LongKernel]
KernelInit = Callable[[tuple[int, int, int], torch.Generator | None], Float[Tensor, "copies channels lags"]]
"""Draws a kernel of the shape (copies, channels, lags)."""


def squash(kernel: LongKernel, threshold: float) -> LongKernel:
    """sign(K) · max(|K| − threshold, 0): its gradient is 1 beyond the threshold and 0 within.

    Source: section 3.1, Squash. Raises: ValueError for a threshold below 0.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold={threshold} must not be below 0")
    return kernel if threshold == 0 else F.softshrink(kernel, threshold)


def naive_squash(kernel: LongKernel, threshold: float) -> LongKernel:
    """The equation."""
    return kernel.sign() * (kernel.abs() - threshold).clamp(min=0)


@dataclass(frozen=True)
class SmoothTime:
    """The mean over `window` neighbouring lags; zeros beyond the ends count.

    Raises: ValueError for a window that is not odd.
    """

    window: int = 7

    def __post_init__(self) -> None:
        _check_window(self.window)

    def __call__(self, kernel: LongKernel) -> LongKernel:
        flat = kernel.reshape(-1, 1, kernel.shape[-1])
        return F.avg_pool1d(flat, self.window, 1, self.window // 2).view(kernel.shape)


@dataclass(frozen=True)
class SmoothFrequency:
    """Neighbouring frequencies added with the weights exp(−½ (i − window // 2)²), i < window.

    The weights are those of the authors' code; they do not add up to 1, so the kernel grows with the window.
    Raises: ValueError for a window that is not odd.
    """

    window: int = 7

    def __post_init__(self) -> None:
        _check_window(self.window)

    def __call__(self, kernel: LongKernel) -> LongKernel:
        lags, half = kernel.shape[-1], self.window // 2
        offsets = torch.arange(self.window, dtype=kernel.dtype, device=kernel.device) - half
        weights = torch.exp(-0.5 * offsets.square())[None, None]
        spectrum = torch.view_as_real(torch.fft.rfft(kernel)).movedim(-1, -2)
        flat = spectrum.reshape(-1, 1, spectrum.shape[-1])
        with torch.autocast(kernel.device.type, enabled=False):
            smooth = F.conv1d(flat, weights, padding=half).view(spectrum.shape).movedim(-2, -1)
        return torch.fft.irfft(torch.view_as_complex(smooth.contiguous()), lags)


@dataclass(frozen=True, kw_only=True)
class KernelRegulariser:
    """What is done to a kernel in each forward pass: smoothing, then the squash, then dropout.

    `threshold` is the squash's λ, `dropout` the share of taps that is left out in training.
    Raises: ValueError for a negative threshold or a dropout outside 0 … 1.
    """

    threshold: float = 0.0
    dropout: float = 0.0
    smooth: Smoothing | None = None

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold={self.threshold} must not be below 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in 0 … 1, without 1")

    def __call__(self, kernel: LongKernel, *, training: bool) -> LongKernel:
        """The kernel to convolve with.

        Raises: ValueError, on the CPU, if nothing of it is left before the dropout: no gradient would ever
        bring it back. (On a GPU, asking would stall the device.)
        """
        smooth = kernel if self.smooth is None else self.smooth(kernel)
        squashed = squash(smooth, self.threshold)
        if squashed.device.type == "cpu" and not torch.compiler.is_compiling() and not squashed.any():
            raise ValueError(
                f"threshold={self.threshold} leaves nothing of a kernel whose largest value is "
                f"{float(smooth.detach().abs().max()):.3g}; it cannot train. Use a smaller threshold"
            )
        return F.dropout(squashed, self.dropout, training)


def random_kernel(
    shape: tuple[int, int, int], generator: torch.Generator | None = None
) -> Float[Tensor, "copies channels lags"]:
    """0.002 · N(0, 1)."""
    return 0.002 * torch.randn(shape, generator=generator)


def geometric_kernel(
    shape: tuple[int, int, int], generator: torch.Generator | None = None
) -> Float[Tensor, "copies channels lags"]:
    """0.02 · N(0, 1) · exp(−(j/L) · (H/2)^(i/H)) for channel i of H and lag j of L."""
    _, channels, lags = shape
    rates = (channels / 2) ** (torch.arange(channels) / channels)
    decay = torch.exp(-rates[:, None] * torch.arange(lags) / lags)
    return 0.02 * torch.randn(shape, generator=generator) * decay


def spectral_roughness(kernel: LongKernel) -> float:
    """‖difference of neighbouring frequencies‖ / ‖spectrum‖ at twice as many points as lags."""
    spectrum = torch.fft.rfft(kernel.detach().double(), 2 * kernel.shape[-1])
    return float(spectrum.diff(dim=-1).norm() / spectrum.norm())


def _check_window(window: int) -> None:
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window={window} must be odd, so that it has a middle; e.g. 7")
