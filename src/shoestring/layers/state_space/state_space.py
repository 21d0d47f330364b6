"""A linear state space over a sequence: a long convolution when it is known, a recurrence when it arrives."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoestring.kernels.fft_convolution import fft_convolve, kernel_spectrum
from shoestring.kernels.spectrum_cache import SpectrumCache, may_keep_spectrum
from shoestring.layers.state import State
from shoestring.layers.state_space.chunk_operator import ChunkOperator
from shoestring.layers.state_space.kernel_parameters import KernelParameters
from shoestring.layers.state_space.recurrence import Recurrence

CHUNK = 64
"""Steps of a prompt that one product reads."""


class StateSpace(nn.Module):
    """y = K * u + D u with as many outputs a feature as the kernel has channels.

    Shapes: u (batch, seq, features) -> y (batch, seq, channels · features). With `bidirectional` half of the
    kernel's channels look back and half look ahead, which starts one step ahead.

    `setup_step` freezes the parameters into a recurrence, after which `init_state`, `prefill` and `step` read
    a sequence in pieces; a state stays in the precision of the parameters whatever that of the tokens.

    Raises: ValueError for an odd number of channels of a bidirectional kernel, and for a state of one;
    RuntimeError for a state before `setup_step`, or after the parameters changed.
    """

    def __init__(
        self,
        kernel: KernelParameters,
        *,
        bidirectional: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if bidirectional and kernel.channels % 2:
            raise ValueError(
                f"channels={kernel.channels} of a bidirectional kernel must be even: half look ahead"
            )
        self.kernel, self.bidirectional = kernel, bidirectional
        self.channels = kernel.channels // 2 if bidirectional else kernel.channels
        self.skip = nn.Parameter(torch.randn(self.channels, kernel.d_model, generator=generator))
        self._cache = SpectrumCache()
        self._recurrence: Recurrence | None = None
        self._chunk: ChunkOperator | None = None
        self._versions: list[int] = []

    def forward(
        self, u: Float[Tensor, "batch seq features"], rate: float = 1.0
    ) -> Float[Tensor, "batch seq outputs"]:
        """All outputs at once. rate: as in the kernel, for data sampled at another interval."""
        self._check_features(u)
        seq = u.shape[1]
        signal = u.transpose(1, 2)
        if rate == 1 and may_keep_spectrum(self.training):
            spectrum = self._cache.get(list(self.kernel.parameters()), seq, lambda: self._spectrum(seq))
            y = fft_convolve(signal, spectrum, skip=self.skip)
        else:
            taps, ahead = self._taps(seq, rate)
            y = fft_convolve(signal, taps, skip=self.skip, backward_kernel=ahead)
        return y.flatten(1, 2).transpose(1, 2)

    def setup_step(self, mode: str = "linear") -> None:
        """Get ready to read in pieces: `mode` is one that the kernel has.

        Raises: ValueError for a bidirectional state space, an unknown mode, or one that would lose precision.
        """
        if self.bidirectional:
            raise ValueError("a bidirectional state space reads the future: it has no state and no step()")
        self._recurrence = self.kernel.recurrence(mode)
        self._chunk = None
        self._versions = self._parameter_versions()

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state before the first token; `dtype` is that of the tokens and does not touch the state."""
        x = self._ready().start(batch)
        return {"x": x if device is None else x.to(device)}

    def prefill(
        self, x: Float[Tensor, "batch seq features"], state: State
    ) -> tuple[Float[Tensor, "batch seq outputs"], State]:
        """As `Recurrent.prefill`, `CHUNK` steps at a time."""
        recurrence = self._ready()
        self._check_features(x)
        if self._chunk is None:
            self._chunk = ChunkOperator.of(recurrence, CHUNK)
        with torch.autocast(x.device.type, enabled=False):
            u = x.to(self.skip.dtype)
            y, last = self._chunk.read(u, state["x"])
            y = y + self.skip * u.unsqueeze(2)
        return y.flatten(2).to(x.dtype), {"x": last}

    def step(
        self, x: Float[Tensor, "batch features"], state: State
    ) -> tuple[Float[Tensor, "batch outputs"], State]:
        """As `Recurrent.step`."""
        recurrence = self._ready()
        with torch.autocast(x.device.type, enabled=False):
            u = x.to(self.skip.dtype)
            y, last = recurrence.advance(state["x"], u)
            y = y + self.skip * u.unsqueeze(1)
        return y.flatten(1).to(x.dtype), {"x": last}

    def _spectrum(self, seq: int) -> Any:
        taps, ahead = self._taps(seq, 1.0)
        return kernel_spectrum(taps, seq, backward_kernel=ahead)

    def _taps(self, seq: int, rate: float) -> tuple[Tensor, Tensor | None]:
        taps = self.kernel(seq, rate)
        if not self.bidirectional:
            return taps, None
        return taps[: self.channels], taps[self.channels :]

    def _ready(self) -> Recurrence:
        if self.bidirectional:
            raise ValueError("a bidirectional state space reads the future: it has no state and no step()")
        if self._recurrence is None:
            raise RuntimeError("call setup_step() first: it turns the parameters into a recurrence")
        if not torch.compiler.is_compiling() and self._versions != self._parameter_versions():
            raise RuntimeError("the parameters changed since setup_step(); call it again")
        return self._recurrence

    def _parameter_versions(self) -> list[int]:
        return [-1 if p.is_inference() else p._version for p in self.kernel.parameters()]

    def _check_features(self, u: Tensor) -> None:
        if u.shape[-1] != self.kernel.d_model:
            raise ValueError(
                f"the input has {u.shape[-1]} features; this state space has {self.kernel.d_model}"
            )

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "StateSpace":
        self._recurrence = self._chunk = (
            None  # what moves or casts the parameters leaves the constants behind
        )
        return super()._apply(fn, recurse)
