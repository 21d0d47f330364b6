"""A state space one step at a time, in three forms that give the same outputs.

Each holds what it needs as constants: no gradient reaches the parameters that it was made of. `u` is
(batch, features), outputs are (batch, channels, features), and a state is (batch, features, states).
"""

from dataclasses import dataclass, fields, replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor

from shoestring.layers.state_space.discretise import DenseSystem

LARGEST_CANCELLATION = 100.0
"""In float32 a sum of terms that are this much larger than itself keeps five digits."""

Form = TypeVar("Form", "LinearRecurrence", "DiagonalRecurrence")


@runtime_checkable
class Recurrence(Protocol):
    """x_k = Ad x_(k-1) + Bd u_k, y_k = C x_k."""

    def start(self, batch: int) -> Inexact[Tensor, "batch features states"]:
        """A state of 0."""
        ...

    def advance(
        self, x: Inexact[Tensor, "batch features states"], u: Float[Tensor, "batch features"]
    ) -> tuple[Float[Tensor, "batch channels features"], Inexact[Tensor, "batch features states"]]:
        """The output of one more step, and the state after it."""
        ...


@dataclass(frozen=True)
class DenseRecurrence:
    """As the equation has it: O(N^2) a step. The reference for the other two."""

    system: DenseSystem

    def start(self, batch: int) -> Float[Tensor, "batch features n"]:
        """A state of 0."""
        return self.system.b.new_zeros(batch, *self.system.b.shape)

    def advance(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """One step."""
        x = torch.einsum("hij,bhj->bhi", self.system.a, x) + self.system.b * u.unsqueeze(-1)
        return torch.einsum("chi,bhi->bch", self.system.c, x), x


@dataclass(frozen=True)
class LinearRecurrence:
    """Diagonal plus low rank by the bilinear rule, O(N) a step: x <- keep x + drive u - answer g(x, u).

    With D = 1 / (2/dt - Lambda), E = 2/dt + Lambda and R = 1 + 2 Re sum(conj(P) D P), one step is x <- D (v -
    P 2 Re(sum(conj(P) D v)) / R) for v = E x - P 2 Re(sum(conj(P) x)) + 2 B u. Both inner products fall into
    one, g = (2 Re(sum(read x)) + direct u) / R with read = 4/dt conj(P) D, because 1 + D E = 4/dt D.

    Source: Gu et al. 2021, "Efficiently Modeling Long Sequences with Structured State Spaces", appendix C.2;
    the two products joined here.
    """

    keep: Complex[Tensor, "features half"]
    drive: Complex[Tensor, "features half"]
    answer: Complex[Tensor, "features half"]
    read: Float[Tensor, "features n"]
    direct: Float[Tensor, " features"]
    output: Float[Tensor, "channels features n"]

    @staticmethod
    def of(
        poles: Tensor, low_rank: Tensor, input: Tensor, output: Tensor, step: Tensor
    ) -> "LinearRecurrence":
        """Complex: poles, low_rank, input (features, half), output (channels, features, half). Real: step."""
        rate = (2 / step).unsqueeze(-1)
        d = 1 / (rate - poles)
        r = 1 + 2 * (low_rank.abs() ** 2 * d).sum(-1).real
        return LinearRecurrence(
            keep=d * (rate + poles),
            drive=2 * d * input,
            answer=d * low_rank,
            read=_twice_real_part(2 * rate * low_rank.conj() * d / r.unsqueeze(-1)),
            direct=4 * (low_rank.conj() * d * input).sum(-1).real / r,
            output=_twice_real_part(output),
        )

    def start(self, batch: int) -> Complex[Tensor, "batch features half"]:
        """A state of 0."""
        return self.keep.new_zeros(batch, *self.keep.shape)

    def advance(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """One step."""
        g = (as_real(x) * self.read).sum(-1) + self.direct * u
        x = self.keep * x + self.drive * u.unsqueeze(-1) - self.answer * g.unsqueeze(-1)
        return _outputs(x, self.output), x


@dataclass(frozen=True)
class DiagonalRecurrence:
    """x <- poles x + drive u, y = Re(sum(C x)): elementwise."""

    poles: Complex[Tensor, "features states"]
    drive: Complex[Tensor, "features states"]
    output: Float[Tensor, "channels features reals"]

    @staticmethod
    def of_pairs(poles: Tensor, input: Tensor, output: Tensor) -> "DiagonalRecurrence":
        """From one of each pair: discrete poles and input (features, half), output (channels, …)."""
        return DiagonalRecurrence(poles, input, _twice_real_part(output))

    @staticmethod
    def of_dense(system: DenseSystem) -> "DiagonalRecurrence":
        """By the eigenvectors of Ad, all of them, in float64.

        Raises: ValueError where they are so nearly parallel that float32 does not keep five digits of the
        outputs, as those of HiPPO are before training.
        """
        poles, vectors = torch.linalg.eig(system.a.double())
        drive = torch.linalg.solve(vectors, system.b.to(vectors.dtype).unsqueeze(-1)).squeeze(-1)
        output = (system.c.to(vectors.dtype).unsqueeze(-2) @ vectors).squeeze(-2)
        _check_cancellation(poles, output * drive)
        return DiagonalRecurrence(poles, drive, _twice_real_part(output) / 2)

    def start(self, batch: int) -> Complex[Tensor, "batch features states"]:
        """A state of 0."""
        return self.poles.new_zeros(batch, *self.poles.shape)

    def advance(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """One step."""
        x = self.poles * x + self.drive * u.unsqueeze(-1)
        return _outputs(x, self.output), x


def cast(form: Form, real: torch.dtype) -> Form:
    """The same recurrence in numbers of another precision, named by its real type."""
    complex_type = torch.promote_types(real, torch.complex32)
    tensors = {field.name: getattr(form, field.name) for field in fields(form)}
    return replace(
        form, **{name: x.to(complex_type if x.is_complex() else real) for name, x in tensors.items()}
    )


def _check_cancellation(poles: Tensor, terms: Tensor) -> None:
    """Raises: ValueError where the first taps, sums of terms times powers of poles, are small beside them."""
    powers = poles.unsqueeze(-1) ** torch.arange(poles.shape[-1], device=poles.device)
    largest = (terms.unsqueeze(-2) @ powers).squeeze(-2).abs().amax(-1)
    worst = (terms.abs().sum(-1) / largest).max().item()
    if not worst <= LARGEST_CANCELLATION:
        raise ValueError(
            f"mode='diagonal' would sum terms {worst:.0e} times larger than the result (at most "
            f"{LARGEST_CANCELLATION:.0f} keep five digits): the eigenvectors of Ad are nearly parallel; "
            "use mode='linear'"
        )


def _outputs(x: Tensor, output: Tensor) -> Tensor:
    """Re(sum(C x)) for each channel, (batch, channels, features)."""
    return (as_real(x).unsqueeze(1) * output).sum(-1)


def _twice_real_part(weights: Tensor) -> Tensor:
    """Real weights with which a sum over (Re x, Im x), interleaved, is 2 Re(sum(weights x))."""
    return 2 * torch.view_as_real(weights.conj().resolve_conj()).flatten(-2)


def as_real(x: Tensor) -> Tensor:
    """A state as real numbers."""
    return torch.view_as_real(x).flatten(-2) if x.is_complex() else x


def as_state(real: Tensor, like: Tensor) -> Tensor:
    return torch.view_as_complex(real.unflatten(-1, (-1, 2))) if like.is_complex() else real
