"""The spectrum of a state space whose matrix is diagonal plus low rank: sums over poles, then a correction.

With w = exp(-2 pi i k / L), a = 2 (1 - w), e = 1 + w, one pair of conjugate poles adds to the sum s(v)

    2 dt [2 Re(v) a - 2 dt Re(v conj(Lambda)) e] / [a^2 - 2 dt Re(Lambda) a e + dt^2 |Lambda|^2 e^2]

and the spectrum is s(C B) - s(C P) s(conj(P) B) e / (2 + e s(|P|^2)), by Woodbury. On the unit circle a and e
are 4i sin(pi k / L) and 2 cos(pi k / L) times one phase sqrt(w), which leaves real arithmetic, one reciprocal
for all four sums, and no division by e, which is 0 at w = -1.

Source: Gu et al. 2021, "Efficiently Modeling Long Sequences with Structured State Spaces", appendix C.3;
rearranged.
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from shoestring.errors import NoCompiler
from shoestring.kernels import cauchy_compiled as compiled
from shoestring.kernels.cauchy_torch import blocked_spectrum
from shoestring.kernels.costs import Cost, states_cost
from shoestring.notices import notice_fallback


def naive_pair_sum(
    v: Complex[Tensor, "... n"],
    poles: Complex[Tensor, "*#dims n"],
    step: Float[Tensor, "*#dims"],
    length: int,
) -> Complex[Tensor, "... frequencies"]:
    """s(v) at w_k = exp(-2 pi i k / length), k = 0 .. length / 2, as the equation has it."""
    w = _unit_circle(length, poles)
    a, e = 2 * (1 - w), 1 + w
    v, lam, dt = v.unsqueeze(-1), poles.unsqueeze(-1), step[..., None, None]
    top = 2 * v.real * a - 2 * dt * (v * lam.conj()).real * e
    bottom = a**2 - 2 * dt * lam.real * a * e + dt**2 * lam.abs() ** 2 * e**2
    return (2 * dt * top / bottom).sum(-2)


def naive_dplr_spectrum(
    output: Complex[Tensor, "channels features n"],
    poles: Complex[Tensor, "features n"],
    low_rank: Complex[Tensor, "features n"],
    input: Complex[Tensor, "features n"],
    step: Float[Tensor, " features"],
    length: int,
) -> Complex[Tensor, "channels features frequencies"]:
    """As `dplr_spectrum`: four sums, then the correction, everything in memory at once."""

    def s(v: Tensor) -> Tensor:
        return naive_pair_sum(v, poles, step, length)

    e = 1 + _unit_circle(length, poles)
    correction = (
        s(output * low_rank) * s(low_rank.conj() * input) * e / (2 + e * s(low_rank.conj() * low_rank))
    )
    return s(output * input) - correction


def _cost(output: Tensor, poles: Tensor, low_rank: Tensor, input: Tensor, step: Tensor, length: int) -> Cost:
    """For a pole and a frequency one reciprocal of a square, 7 operations, and 16 multiply-adds."""
    frequencies = length // 2 + 1
    given = sum(part.nbytes for part in (output, poles, low_rank, input, step))
    written = output[..., 0].numel() * frequencies * output.element_size()
    return Cost(39 * output.numel() * frequencies, given + written)


@states_cost(_cost)
def dplr_spectrum(
    output: Complex[Tensor, "channels features n"],
    poles: Complex[Tensor, "features n"],
    low_rank: Complex[Tensor, "features n"],
    input: Complex[Tensor, "features n"],
    step: Float[Tensor, " features"],
    length: int,
) -> Complex[Tensor, "channels features frequencies"]:
    """C_t (1 - w Ad)^-1 Bd on half of the unit circle, where A = diag(poles) - P P^*, by the bilinear rule.

    Poles come one of each conjugate pair. With C_t = C (I - Ad^length), `irfft` of the result are the taps
    C Ad^l Bd. frequencies = length / 2 + 1. There is no second derivative. Of float32, the sums and the
    correction are still done in float64: near a resonance of A they cancel.

    On the CPU a compiled loop answers, forward and backward, which holds no more than the result; elsewhere,
    or without a compiler, torch works on blocks of features, which is said once.
    Raises: ValueError where `length` is odd or below 2.
    """
    if length < 2 or length % 2:
        raise ValueError(
            f"length={length} must be even and at least 2; use {max(2, length + length % 2)} and crop"
        )
    if (reason := _why_torch(poles)) is None:
        return compiled.compiled_spectrum(output, poles, low_rank, input, step, length)
    notice_fallback("dplr_spectrum", reason)
    return blocked_spectrum(output, poles, low_rank, input, step, length)


def _why_torch(poles: Tensor) -> str | None:
    """Why the compiled loop cannot do it; None where it can."""
    if poles.device.type != "cpu":
        return f"torch sums blocks on {poles.device}: the compiled loop is for CPUs"
    try:
        compiled.library()
    except NoCompiler as error:
        return f"torch sums blocks instead of the compiled loop ({error})"
    return None


def _unit_circle(length: int, like: Tensor) -> Tensor:
    angle = torch.arange(length // 2 + 1, dtype=torch.float64, device=like.device) * (-2 * math.pi / length)
    return torch.polar(torch.ones_like(angle), angle).to(like.dtype)
