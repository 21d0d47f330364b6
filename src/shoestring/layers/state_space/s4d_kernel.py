"""The taps of a diagonal state space: sums of geometric sequences.

Source: Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State Space Models", section
3.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from shoestring.kernels.vandermonde import vandermonde
from shoestring.layers.state_space.discretise import DenseSystem, dense_system, zero_order_hold
from shoestring.layers.state_space.hippo import DiagonalPlusLowRank
from shoestring.layers.state_space.kernel_parameters import KernelParameters
from shoestring.layers.state_space.recurrence import DenseRecurrence, DiagonalRecurrence, Recurrence

MODES = ("dense", "diagonal")


class S4DKernel(KernelParameters):
    """K_l = 2 Re sum(C B' exp(l dt Lambda)) with B' = (exp(dt Lambda) - 1) / Lambda B: the zero-order hold.

    Shapes, arguments and errors as `S4Kernel`, but the length is free. Raises: ValueError for an initial
    matrix with a low rank part.
    """

    def __init__(self, d_model: int, initial: DiagonalPlusLowRank, **options: object) -> None:
        if initial.low_rank.abs().max() > 0:
            raise ValueError("a diagonal kernel has no low rank part; use diagonal_legs() or S4Kernel")
        super().__init__(d_model, initial, **options)  # type: ignore[arg-type]

    def forward(self, length: int, rate: float = 1.0) -> Float[Tensor, "channels features length"]:
        """The first `length` taps, for inputs that come `1 / rate` times as often as those trained on."""
        if length < 1:
            raise ValueError(f"length={length} must be at least 1")
        if not rate > 0:
            raise ValueError(f"rate={rate} must be above 0; 0.5 is for inputs that come twice as often")
        self.check_precision()
        with torch.autocast(self.log_dt.device.type, enabled=False):
            exponent = self.poles * (rate * self.step).unsqueeze(-1)
            coefficients = 2 * torch.view_as_complex(self.output) * self._held_input(exponent)
            return vandermonde(coefficients, exponent, length)

    def recurrence(self, mode: str) -> Recurrence:
        """The same map one step at a time. Raises: ValueError for an unknown mode."""
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}; a diagonal state space has {', '.join(map(repr, MODES))}")
        self.check_precision()
        with torch.no_grad():
            if mode == "dense":
                system = self.discrete_system()
                return DenseRecurrence(
                    DenseSystem(*(x.to(self.log_dt.dtype) for x in (system.a, system.b, system.c)))
                )
            exponent = self.poles * self.step.unsqueeze(-1)
            output = torch.view_as_complex(self.output)
            return DiagonalRecurrence.of_pairs(exponent.exp(), self._held_input(exponent), output)

    def discrete_system(self) -> DenseSystem:
        """Ad, Bd and C of each feature, in float64."""
        parts = self.poles, torch.zeros_like(self.poles), self._input(), torch.view_as_complex(self.output)
        return zero_order_hold(dense_system(*(x.to(torch.complex128) for x in parts)), self.step.double())

    def _held_input(self, exponent: Tensor) -> Complex[Tensor, "features half"]:
        """B', with exp(z) - 1 in a form that keeps its digits near 0."""
        decay, angle = exponent.real, exponent.imag
        real = torch.expm1(decay) * torch.cos(angle) - 2 * torch.sin(angle / 2) ** 2
        grown = torch.complex(real, torch.exp(decay) * torch.sin(angle))
        return grown / self.poles * self._input()

    def _input(self) -> Complex[Tensor, "features half"]:
        return self._features(torch.view_as_complex(self.input))
