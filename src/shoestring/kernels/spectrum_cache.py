"""The spectrum of a kernel, kept as long as what the kernel is made of does not change."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from shoestring.kernels.fft_convolution import KernelSpectrum


class SpectrumCache:
    """Keeps one `KernelSpectrum` for evaluation: a layer asks for it in place of transforming its kernel.

    It is made anew when a source was written to (torch counts the writes of each tensor), replaced, moved or
    cast, or when a longer sequence comes. A write that goes around that count, as `parameter.data.mul_(2)`
    does, is not seen: call `clear` after one. A copied or stored layer starts with an empty cache.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the spectrum."""
        self._spectrum: KernelSpectrum | None = None
        self._stamps: tuple[Any, ...] = ()

    def get(self, sources: Sequence[Tensor], seq: int, make: Callable[[], KernelSpectrum]) -> KernelSpectrum:
        """The spectrum for sequences of `seq` steps; `make` is called if what is kept does not serve.

        `sources` are the tensors of which the kernel is made. Nothing is kept of sources made in inference
        mode, whose writes torch does not count.
        """
        if any(source.is_inference() for source in sources):
            return make()
        kept, same = self._spectrum, len(self._stamps) == len(sources)
        same = same and all(
            reference() is source and rest == _stamp(source)
            for (reference, *rest), source in zip(self._stamps, sources, strict=True)
        )
        # A much longer transform than needed costs more than making the right one.
        if kept is not None and same and kept.seq // 2 < seq <= kept.seq:
            return kept
        self._spectrum = make()
        self._stamps = tuple((weakref.ref(source), *_stamp(source)) for source in sources)
        return self._spectrum

    def __deepcopy__(self, memo: dict[int, Any]) -> "SpectrumCache":
        return SpectrumCache()

    def __reduce__(self) -> tuple[type["SpectrumCache"], tuple[()]]:
        return SpectrumCache, ()


def _stamp(source: Tensor) -> list[object]:
    return [source._version, source.data_ptr(), source.dtype, source.device]


def may_keep_spectrum(training: bool) -> bool:
    """Whether a layer may use its cache now: in evaluation, without gradients, and not while compiled."""
    return not (training or torch.is_grad_enabled() or torch.compiler.is_compiling())
