"""From a differential equation to a recurrence: x' = A x + B u becomes x_k = Ad x_(k-1) + Bd u_k.

The dense forms here are the reference for every fast path, and what a layer sets itself up with.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor


@dataclass(frozen=True)
class DenseSystem:
    """A real state space for each feature, with its output y = C x."""

    a: Float[Tensor, "features n n"]
    b: Float[Tensor, "features n"]
    c: Float[Tensor, "channels features n"]


def dense_system(
    poles: Complex[Tensor, "features half"],
    low_rank: Complex[Tensor, "features half"],
    input: Complex[Tensor, "features half"],
    output: Complex[Tensor, "channels features half"],
) -> DenseSystem:
    """x' = (diag(poles) - P P^*) x + B u and y = 2 Re(C x) on half of the pairs, as (Re x, Im x)."""
    p, b = _real(low_rank), _real(input)
    diagonal = torch.cat([poles.real, poles.real], dim=-1).diag_embed()
    half = poles.shape[-1]
    turning = torch.diag_embed(poles.imag, offset=half) - torch.diag_embed(poles.imag, offset=-half)
    a = diagonal - turning - 2 * p.unsqueeze(-1) * p.unsqueeze(-2)
    return DenseSystem(a, b, 2 * _real(output.conj()))


def as_output(c: Float[Tensor, "channels features n"]) -> Complex[Tensor, "channels features half"]:
    """The C of `dense_system` as the complex one that it came from."""
    re, im = (c / 2).chunk(2, dim=-1)
    return torch.complex(re, -im)


def bilinear(system: DenseSystem, step: Float[Tensor, " features"]) -> DenseSystem:
    """Ad = (1 - dt/2 A)^-1 (1 + dt/2 A), Bd = (1 - dt/2 A)^-1 dt B.

    Source: Gu et al. 2021, "Efficiently Modeling Long Sequences with Structured State Spaces", eq. 3
    (Tustin).
    """
    half_a = system.a * (step / 2)[:, None, None]
    one = torch.eye(half_a.shape[-1], dtype=half_a.dtype, device=half_a.device)
    right = torch.cat([one + half_a, (system.b * step[:, None]).unsqueeze(-1)], dim=-1)
    solved = torch.linalg.solve(one - half_a, right)
    return DenseSystem(solved[..., :-1], solved[..., -1], system.c)


def zero_order_hold(system: DenseSystem, step: Float[Tensor, " features"]) -> DenseSystem:
    """Ad = exp(dt A), Bd = A^-1 (exp(dt A) - 1) B: exact where u is constant over a step.

    Source: Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State Space Models", eq.
    3.
    """
    a = torch.linalg.matrix_exp(system.a * step[:, None, None])
    one = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    b = torch.linalg.solve(system.a, (a - one) @ system.b.unsqueeze(-1)).squeeze(-1)
    return DenseSystem(a, b, system.c)


def naive_taps(discrete: DenseSystem, length: int) -> Float[Tensor, "channels features length"]:
    """C Ad^l Bd for l < length, one power after the other."""
    state, taps = discrete.b, []
    for _ in range(length):
        taps.append((discrete.c * state).sum(-1))
        state = (state.unsqueeze(-2) @ discrete.a.mT).squeeze(-2)
    return torch.stack(taps, dim=-1)


def naive_recurrence(
    discrete: DenseSystem, u: Float[Tensor, "batch seq features"]
) -> Float[Tensor, "batch seq channels features"]:
    """x_k = Ad x_(k-1) + Bd u_k, y_k = C x_k, from a state of 0."""
    state, outputs = u.new_zeros(len(u), *discrete.b.shape), []
    for value in u.unbind(1):
        state = torch.einsum("hij,bhj->bhi", discrete.a, state) + discrete.b * value.unsqueeze(-1)
        outputs.append(torch.einsum("chi,bhi->bch", discrete.c, state))
    return torch.stack(outputs, dim=1)


def truncated(discrete: DenseSystem, length: int) -> Float[Tensor, "channels features n"]:
    """C (1 - Ad^length): with it, the sum of a geometric series up to `length` is that up to infinity.

    Raises: ValueError where a part of the state decays so little within `length` that 1 - Ad^length loses it.
    """
    return _row_times(discrete.c, _one_minus_power(discrete, length))


def untruncated(discrete: DenseSystem, length: int) -> Float[Tensor, "channels features n"]:
    """The C of which `discrete.c` is the truncated one.

    Raises: as `truncated`.
    """
    matrix = _one_minus_power(discrete, length)
    return torch.linalg.solve(matrix.mT, discrete.c.unsqueeze(-1)).squeeze(-1)


def doubled(discrete: DenseSystem, length: int) -> Float[Tensor, "channels features n"]:
    """C_t for 2 `length` from the C_t for `length`: C_t (1 + Ad^length)."""
    one = torch.eye(discrete.a.shape[-1], dtype=discrete.a.dtype, device=discrete.a.device)
    return _row_times(discrete.c, one + torch.linalg.matrix_power(discrete.a, length))


def _one_minus_power(discrete: DenseSystem, length: int) -> Tensor:
    one = torch.eye(discrete.a.shape[-1], dtype=discrete.a.dtype, device=discrete.a.device)
    matrix = one - torch.linalg.matrix_power(discrete.a, length)
    smallest = torch.linalg.svdvals(matrix.detach())[..., -1].min().item()
    least = 1e6 * torch.finfo(matrix.dtype).eps
    if not smallest > least:
        raise ValueError(
            f"length={length} is too short for steps this small: a part of the state keeps all but "
            f"{smallest:.1e} of itself, and below {least:.1e} 1 - Ad^length loses it; use larger steps"
        )
    return matrix


def _row_times(c: Tensor, matrix: Tensor) -> Tensor:
    return (c.unsqueeze(-2) @ matrix).squeeze(-2)


def _real(x: Tensor) -> Tensor:
    return torch.cat([x.real, x.imag], dim=-1)
