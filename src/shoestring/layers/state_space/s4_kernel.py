"""The taps of a diagonal plus low rank state space, by its generating function.

Source: Gu et al. 2021, "Efficiently Modeling Long Sequences with Structured State Spaces", section 3.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from shoestring.kernels.cauchy import dplr_spectrum
from shoestring.layers.state_space.discretise import (
    DenseSystem,
    as_output,
    bilinear,
    dense_system,
    doubled,
    truncated,
    untruncated,
)
from shoestring.layers.state_space.hippo import DiagonalPlusLowRank
from shoestring.layers.state_space.kernel_parameters import DYNAMICS, KernelParameters
from shoestring.layers.state_space.recurrence import (
    DenseRecurrence,
    DiagonalRecurrence,
    LinearRecurrence,
    Recurrence,
    cast,
)

MODES = ("dense", "linear", "diagonal")


class S4Kernel(KernelParameters):
    """K_l = C Ad^l Bd for l < length, (channels, features, length), in O((N + log L) L) a feature.

    What is trained is C_t = C (1 - Ad^L), which `output` holds from the first use on. The internal length L
    is that of the first use, doubled when a longer one is asked for; a shorter kernel is the beginning of
    that of L.

    Arguments and errors as `KernelParameters`; in use ValueError for a length below 2, and for one above L
    where `output` may not be changed: frozen parameters, a compiled or exported model.
    """

    internal_length: Tensor

    def __init__(self, d_model: int, initial: DiagonalPlusLowRank, **options: object) -> None:
        super().__init__(d_model, initial, **options)  # type: ignore[arg-type]
        self.low_rank = nn.Parameter(self._copies(torch.view_as_real(initial.low_rank)))
        self.parameter_hints["low_rank"] = DYNAMICS
        self.register_buffer("internal_length", torch.zeros((), dtype=torch.int64))
        self._length = 0
        self.register_load_state_dict_post_hook(_read_length)

    @property
    def length(self) -> int:
        """L: what `output` is truncated to; 0 before the first use, when it is C itself."""
        return self._length

    @torch.no_grad()
    def set_length(self, length: int) -> None:
        """Make the kernel serve sequences of `length` steps. Raises: ValueError for a length below 2."""
        _check_length(length)
        self.check_precision()
        if self._length == 0:
            self._set(truncated(self._discrete(), length + length % 2), length + length % 2)
        while self._length < length:
            self._set(doubled(self._discrete(), self._length), 2 * self._length)

    def forward(self, length: int, rate: float = 1.0) -> Float[Tensor, "channels features length"]:
        """The first `length` taps, for inputs that come `1 / rate` times as often as those trained on."""
        _check_length(length)
        if not rate > 0:
            raise ValueError(f"rate={rate} must be above 0; 0.5 is for inputs that come twice as often")
        self.check_precision()
        if _taps_at(self._length, rate) < length:
            self._grow(length, rate)
        with torch.autocast(self.log_dt.device.type, enabled=False):
            if rate == 1:
                return self._taps(self._output(), self.step, self._length)[..., :length]
            return self._resampled_taps(rate)[..., :length]

    def recurrence(self, mode: str) -> Recurrence:
        """The same map one step at a time. Raises: ValueError for an unknown mode; as the recurrence."""
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}; use one of {', '.join(map(repr, MODES))}")
        self.check_precision()
        with torch.no_grad():
            system = self.discrete_system()
            exact = self.log_dt.dtype
            if mode == "diagonal":
                return cast(DiagonalRecurrence.of_dense(system), exact)
            if mode == "dense":
                return DenseRecurrence(DenseSystem(*(x.to(exact) for x in (system.a, system.b, system.c))))
            output = as_output(system.c)
            parts = self.poles, self._low_rank(), self._input()
            wide = [x.to(torch.complex128) for x in (*parts, output)]
            return cast(LinearRecurrence.of(wide[0], wide[1], wide[2], wide[3], self.step.double()), exact)

    def discrete_system(self) -> DenseSystem:
        """Ad, Bd and C (not the truncated one) of each feature, in float64."""
        discrete = self._discrete()
        if self._length == 0:
            return discrete
        return DenseSystem(discrete.a, discrete.b, untruncated(discrete, self._length))

    def _discrete(self, rate: float = 1.0) -> DenseSystem:
        """As `discrete_system`, with what `output` holds in place of C."""
        wide = [x.to(torch.complex128) for x in (self.poles, self._low_rank(), self._input(), self._output())]
        return bilinear(dense_system(*wide), rate * self.step.double())

    def _taps(self, output: Tensor, step: Tensor, length: int) -> Tensor:
        spectrum = dplr_spectrum(output, self.poles, self._low_rank(), self._input(), step, length)
        return torch.fft.irfft(spectrum, n=length)

    def _resampled_taps(self, rate: float) -> Tensor:
        length = _taps_at(self._length, rate)
        discrete = self._discrete(rate)
        c = untruncated(self._discrete(), self._length) if self._length else discrete.c
        output = as_output(truncated(DenseSystem(discrete.a, discrete.b, c), length))
        return self._taps(output.to(self.poles.dtype), rate * self.step, length)

    def _grow(self, length: int, rate: float) -> None:
        wanted = max(2, int(length * rate))
        while _taps_at(wanted, rate) < length:
            wanted += 1
        if torch.compiler.is_compiling() or not self.output.requires_grad:
            raise ValueError(
                f"length={length} is above the internal length {self._length} of a frozen or compiled state "
                f"space; call set_length({wanted}) before it is frozen or compiled"
            )
        self.set_length(wanted)

    def _set(self, c: Tensor, length: int) -> None:
        self.output.copy_(torch.view_as_real(as_output(c)))
        self.internal_length.fill_(length)
        self._length = length

    def _low_rank(self) -> Complex[Tensor, "features half"]:
        return self._features(torch.view_as_complex(self.low_rank))

    def _input(self) -> Complex[Tensor, "features half"]:
        return self._features(torch.view_as_complex(self.input))

    def _output(self) -> Complex[Tensor, "channels features half"]:
        return torch.view_as_complex(self.output)


def _taps_at(length: int, rate: float) -> int:
    """How many taps a kernel of `length` has at a rate, an even number."""
    return length if rate == 1 else 2 * round(length / rate / 2)


def _check_length(length: int) -> None:
    if length < 2:
        raise ValueError(f"length={length} must be at least 2; single tokens go through step()")


def _read_length(module: S4Kernel, _incompatible: object) -> None:
    module._length = int(module.internal_length)
