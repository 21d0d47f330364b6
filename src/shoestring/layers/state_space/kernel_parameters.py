"""What the kernels of all state spaces have in common: their parameters."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from shoestring.layers.parameter_hint import ParameterHint
from shoestring.layers.state_space.hippo import DiagonalPlusLowRank
from shoestring.layers.state_space.recurrence import Recurrence

DYNAMICS = ParameterHint(largest_learning_rate=1e-3, weight_decay=0.0)
"""A large step or any decay on these ruins training. Source: Gu et al. 2021, appendix D.1."""
OUTPUT = ParameterHint(weight_decay=0.0)


class KernelParameters(nn.Module, ABC):
    """Lambda = -exp(log_re) + i im, B, C and log dt, complex numbers as pairs in a last axis of 2.

    Lambda and B exist `n_ssm` times; feature h uses copy h mod n_ssm. They stay in float32 or float64: a pole
    rounded to half precision oscillates at another frequency. dt = exp(log_dt), log-uniform between dt_min
    and dt_max (late configurations of the authors use softplus; this is the form of the paper).

    Raises: ValueError for sizes below 1, `n_ssm` that does not divide `d_model`, or not 0 < dt_min < dt_max;
    after loading, for poles that are not stable; in use, for parameters in half precision.
    """

    def __init__(
        self,
        d_model: int,
        initial: DiagonalPlusLowRank,
        *,
        channels: int = 1,
        n_ssm: int = 1,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("d_model", d_model), ("channels", channels), ("n_ssm", n_ssm)):
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if d_model % n_ssm:
            raise ValueError(f"n_ssm={n_ssm} does not divide d_model={d_model}; use 1 or a divisor of it")
        if not 0 < dt_min < dt_max:
            raise ValueError(f"dt_min={dt_min} and dt_max={dt_max} must satisfy 0 < dt_min < dt_max")
        self.d_model, self.channels, self.n_ssm, self.d_state = d_model, channels, n_ssm, initial.d_state
        half = len(initial.poles)
        uniform = torch.rand(d_model, generator=generator)
        self.log_dt = nn.Parameter(math.log(dt_min) + uniform * math.log(dt_max / dt_min))
        self.log_re = nn.Parameter(self._copies((-initial.poles.real).log()))
        self.im = nn.Parameter(self._copies(initial.poles.imag))
        self.input = nn.Parameter(self._copies(torch.view_as_real(initial.input)))
        random = torch.randn(channels, d_model, half, dtype=torch.complex64, generator=generator)
        self.output = nn.Parameter(torch.view_as_real(random))
        self.parameter_hints = {
            "log_dt": DYNAMICS, "log_re": DYNAMICS, "im": DYNAMICS, "input": DYNAMICS, "output": OUTPUT,
        }  # fmt: skip
        self.register_load_state_dict_post_hook(_check_stable)

    @abstractmethod
    def forward(self, length: int, rate: float = 1.0) -> Float[Tensor, "channels features length"]:
        """The first `length` taps, for inputs that come `1 / rate` times as often as those trained on."""

    @abstractmethod
    def recurrence(self, mode: str) -> Recurrence:
        """The same map one step at a time. Raises: ValueError for a mode that the kernel does not have."""

    @property
    def poles(self) -> Complex[Tensor, "features half"]:
        """Lambda of each feature; its real part is below 0 by construction."""
        return self._features(torch.complex(-torch.exp(self.log_re), self.im))

    @property
    def step(self) -> Float[Tensor, " features"]:
        """dt."""
        return torch.exp(self.log_dt)

    def check_precision(self) -> None:
        """Raises: ValueError where a parameter is in half precision."""
        for name, parameter in self.named_parameters(recurse=False):
            if parameter.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"{name} of the state space is {parameter.dtype}; it must stay in float32: use "
                    "torch.autocast, or cast the other modules only"
                )

    def _copies(self, values: Tensor) -> Tensor:
        return values.to(torch.float32).expand(self.n_ssm, *values.shape).clone()

    def _features(self, copies: Tensor) -> Tensor:
        return copies.repeat(self.d_model // self.n_ssm, *[1] * (copies.ndim - 1))


def _check_stable(module: KernelParameters, _incompatible: object) -> None:
    """Raises: ValueError for a pole that would let the state grow, or that is not a number."""
    with torch.no_grad():
        poles = module.poles
        bad = ~((poles.real < 0) & torch.isfinite(poles.real) & torch.isfinite(poles.imag))
        if bad.any():
            worst = poles[bad][0].item()
            raise ValueError(
                f"the loaded state space has a pole {worst:.3g}; its real part must be finite and below 0, "
                "so log_re must be finite and above -104 in float32"
            )
