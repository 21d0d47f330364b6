"""Long convolutions along a sequence by Fourier transforms, in O(L log L).

A transform of n points is circular: what runs over its end comes back at its start, from the future into the
past of a causal convolution. So n is at least as long as the full result. On the CPU each row is transformed,
multiplied and brought back in the cache (`fft_convolution_compiled`), elsewhere by torch's transforms.

Source: Fu et al. 2023, "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", section 3; the
bidirectional form is that of the authors' code.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from shoestring.kernels import fft_convolution_compiled as compiled
from shoestring.kernels.fft_convolution_torch import TorchConvolution, fft_length
from shoestring.notices import notice_fallback

Signal = Shaped[Tensor, "*batch channels seq"]
# Shapes that callers get wrong are checked by hand, with an error that says what would be right.
Kernel = Shaped[Tensor, "..."]


@dataclass(frozen=True)
class KernelSpectrum:
    """A transformed kernel, for sequences of up to `seq` steps. `n` is the length of the transform.

    It counts as a constant: gradients reach the signal, not the kernel it was made of. `values` are complex
    frequencies, or, where `is_compiled`, the n real numbers of the compiled loop, in its order.
    """

    values: Shaped[Tensor, "*copies kernel_channels frequencies"]
    n: int
    seq: int
    is_compiled: bool = False


def kernel_spectrum(kernel: Kernel, seq: int, *, backward_kernel: Kernel | None = None) -> KernelSpectrum:
    """The transform of a kernel (and of one that looks ahead), to convolve sequences of up to `seq` steps.

    Raises: as `fft_convolve`.
    """
    _check_kernels(kernel, backward_kernel)
    kernel, backward_kernel = _upcast(kernel), _upcast(backward_kernel)
    if _may_compile(kernel, steps := _steps(kernel, backward_kernel, seq)):
        n = compiled.period(steps)
        circular = _circular_kernel(kernel, backward_kernel, seq, n, sign=-1)
        with torch.no_grad():
            values = compiled.compiled_spectrum(_with_copies(circular), n)
        return KernelSpectrum(values.view(*kernel.shape[:-1], n), n, seq, is_compiled=True)
    n = fft_length(steps)
    circular = _circular_kernel(kernel, backward_kernel, seq, n)
    with torch.no_grad():
        return KernelSpectrum(torch.fft.rfft(circular, n), n, seq)


def fft_convolve(
    u: Signal,
    kernel: Kernel | KernelSpectrum,
    *,
    skip: Kernel | None = None,
    gate: Kernel | None = None,
    backward_kernel: Kernel | None = None,
) -> Shaped[Tensor, "*batch_and_copies channels seq"]:
    """y[t] = gate[t] · (Σ_{s=0..t} kernel[s] u[t−s] + Σ_s backward_kernel[s] u[t+1+s] + skip · u[t]).

    Shapes: u (…, channels, L); kernel (channels, lags) -> y (…, channels, L), or kernel (c, channels, lags),
    c filters for each channel -> y (…, c, channels, L). skip and the kernel that looks ahead are shaped like
    the kernel, gate like u. Lags beyond L do not count. The backward part starts one step ahead, so no lag
    is counted twice. Half precision is computed in float32 and rounded at the end.

    For its backward pass it keeps u and the kernel, and transforms them again: half the memory that their
    spectra would take. It can be differentiated once. y lies in memory as u does, features beside each other
    if they are so in u. On the CPU a compiled loop convolves row after row in the cache; elsewhere, for very
    long rows, or without a compiler torch's transforms answer, which is said once on the CPU.

    Raises: TypeError for what is no real floating-point tensor; ValueError for shapes that do not fit, an
    empty sequence, one longer than the spectrum is for, and, on the CPU, a signal with NaN or infinity,
    which would reach the past as well (on a GPU it fills the row; asking would stall the device).
    """
    _check_signal(u, gate)
    if isinstance(kernel, KernelSpectrum):
        _check_spectrum(u, kernel, backward_kernel)
        copies = kernel.values.shape[:-1]
    else:
        _check_kernels(kernel, backward_kernel)
        copies = kernel.shape[:-1]
        if copies[-1] != u.shape[-2]:
            raise ValueError(f"kernel has {copies[-1]} channels, u has {u.shape[-2]}; they must agree")
    if skip is not None and skip.shape != copies:
        raise ValueError(f"skip has shape {tuple(skip.shape)}; this kernel needs {tuple(copies)}")
    y = _convolved(_upcast(u), kernel, _upcast(backward_kernel), _upcast(skip))
    y = y if len(copies) == 2 else y.squeeze(-3)
    if gate is not None:
        y = y * _beside_copies(gate, len(copies))
    return y.to(u.dtype)


def naive_convolve(
    u: Signal,
    kernel: Kernel,
    *,
    skip: Kernel | None = None,
    gate: Kernel | None = None,
    backward_kernel: Kernel | None = None,
) -> Shaped[Tensor, "*batch_and_copies channels seq"]:
    """`fft_convolve` as its sums say, one lag after the other."""
    dims, seq = kernel.ndim - 1, u.shape[-1]
    signal = _beside_copies(u, dims)
    y = torch.zeros_like(signal * kernel[..., :1])
    for s in range(min(kernel.shape[-1], seq)):
        y[..., s:] += kernel[..., s, None] * signal[..., : seq - s]
    if backward_kernel is not None:
        for s in range(min(backward_kernel.shape[-1], seq - 1)):
            y[..., : seq - 1 - s] += backward_kernel[..., s, None] * signal[..., s + 1 :]
    if skip is not None:
        y = y + skip[..., None] * signal
    return y if gate is None else y * _beside_copies(gate, dims)


def _convolved(
    u: Tensor, kernel: Kernel | KernelSpectrum, backward_kernel: Tensor | None, skip: Tensor | None
) -> Tensor:
    """With an axis for copies, by the compiled loop where it can."""
    if isinstance(kernel, KernelSpectrum):
        values = _with_copies(kernel.values)
        if kernel.is_compiled:
            if u.device.type != "cpu":
                raise ValueError(f"u is on {u.device}, the spectrum is for the CPU; make it anew there")
            return compiled.compiled_convolve(u, None, values, _skip_with_copies(skip), kernel.n)
        return _with_skip(TorchConvolution.apply(u, None, values, kernel.n), u, skip)
    taps, seq = _upcast(kernel), u.shape[-1]
    steps = _steps(taps, backward_kernel, seq)
    if _may_compile(u, steps):
        n = compiled.period(steps)
        circular = _with_copies(_circular_kernel(taps, backward_kernel, seq, n, sign=-1))
        return compiled.compiled_convolve(u, circular, None, _skip_with_copies(skip), n)
    n = fft_length(steps)
    circular = _with_copies(_circular_kernel(taps, backward_kernel, seq, n))
    return _with_skip(TorchConvolution.apply(u, circular, None, n), u, skip)


def _may_compile(u: Tensor, steps: int) -> bool:
    if torch.compiler.is_compiling():
        return False
    reason = compiled.why_not(u, steps)
    if reason is not None and u.device.type == "cpu":
        notice_fallback("fft_convolve", reason)
    return reason is None


def _with_skip(y: Tensor, u: Tensor, skip: Tensor | None) -> Tensor:
    return y if skip is None else y + _skip_with_copies(skip)[..., None] * u.unsqueeze(-3)


def _steps(kernel: Tensor, backward_kernel: Tensor | None, seq: int) -> int:
    """How long a period must be at least."""
    lags = min(kernel.shape[-1], seq)
    ahead = 0 if backward_kernel is None else min(backward_kernel.shape[-1], seq - 1)
    return seq + max(lags - 1, ahead)


def _circular_kernel(
    kernel: Tensor, backward_kernel: Tensor | None, seq: int, n: int, sign: int = 1
) -> Tensor:
    """The kernel as one period of n, what looks ahead at its end: there comes what is `sign` times itself."""
    if kernel.shape[-1] > seq:  # else a slice of everything would cost a copy in the backward pass
        kernel = kernel[..., :seq]
    if backward_kernel is None or seq == 1:
        return kernel
    ahead = sign * backward_kernel[..., : seq - 1].flip(-1)
    gap = n - kernel.shape[-1] - ahead.shape[-1]
    return torch.cat([kernel, kernel.new_zeros(*kernel.shape[:-1], gap), ahead], dim=-1)


def _with_copies(kernel: Tensor) -> Tensor:
    return kernel if kernel.ndim == 3 else kernel.unsqueeze(0)


def _skip_with_copies(skip: Any) -> Any:
    return skip if skip is None or skip.ndim == 2 else skip.unsqueeze(0)


def _beside_copies(u: Tensor, dims: int) -> Tensor:
    """A signal with an axis for the filters of a channel, if the kernel has one."""
    return u.unsqueeze(-3) if dims == 2 else u


def _upcast(x: Any) -> Any:
    """Transforms exist in float32 and float64."""
    return x if x is None else x.to(torch.promote_types(x.dtype, torch.float32))


def _check_signal(u: Tensor, gate: Tensor | None) -> None:
    _check_real("u", u)
    if u.ndim < 2 or u.numel() == 0:
        raise ValueError(f"u has shape {tuple(u.shape)}; it must be (…, channels, L) with nothing empty")
    if gate is not None:
        _check_real("gate", gate)
        if gate.shape != u.shape:
            raise ValueError(f"gate has shape {tuple(gate.shape)}; it must be that of u, {tuple(u.shape)}")


def _check_kernels(kernel: Tensor, backward_kernel: Tensor | None) -> None:
    for name, each in (("kernel", kernel), ("backward_kernel", backward_kernel)):
        if each is None:
            continue
        _check_real(name, each)
        if each.ndim not in (2, 3) or each.numel() == 0:
            raise ValueError(
                f"{name} has shape {tuple(each.shape)}; it must be (channels, lags) or (c, channels, lags) "
                "with nothing empty"
            )
        if each.shape[:-1] != kernel.shape[:-1]:
            raise ValueError(
                f"backward_kernel has shape {tuple(each.shape)}; but for its lags it must be that of kernel, "
                f"{tuple(kernel.shape)}"
            )


def _check_spectrum(u: Tensor, spectrum: KernelSpectrum, backward_kernel: Tensor | None) -> None:
    if backward_kernel is not None:
        raise ValueError("backward_kernel is part of a spectrum already; give it to kernel_spectrum")
    if u.shape[-1] > spectrum.seq:
        raise ValueError(
            f"u has {u.shape[-1]} steps, but the spectrum is for up to {spectrum.seq}; "
            f"make it with kernel_spectrum(kernel, {u.shape[-1]})"
        )
    if spectrum.values.shape[-2] != u.shape[-2]:
        raise ValueError(
            f"kernel has {spectrum.values.shape[-2]} channels, u has {u.shape[-2]}; they must agree"
        )


def _check_real(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{name} is {x.dtype}; give real floating-point numbers, e.g. {name}.float()")
