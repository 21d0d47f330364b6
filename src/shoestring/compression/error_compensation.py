"""Round a matrix column by column, each error absorbed by the columns still to come (GPTQ).

The loss is tr((W − Ŵ) H (W − Ŵ)ᵀ) with H = E[x xᵀ] of the inputs: the mean square error of the outputs.

Source: Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", sections 3.2 to 3.4 and algorithm 1.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from shoestring.kernels.grouped_rounding import compensate_block, empty_grid
from shoestring.numbers.affine_fit import check_weight
from shoestring.numbers.grouped_affine import AffineGrid, GroupedAffine, ZeroPoint

DAMPING = 0.01
"""Added to the diagonal of H, in units of its mean (section 3.3)."""

BLOCK_COLUMNS = 128
"""Columns that are rounded before the rest of the matrix is updated (section 3.3)."""


@dataclass(frozen=True)
class CompensationOrder:
    """What depends on H alone and serves every format of the same group size.

    order: the sequence in which columns are rounded; a group stays together. upper: the Cholesky factor U of
    (H + damping)⁻¹ = Uᵀ U in that order. damping: what was added to the diagonal in the end, in units of its
    mean.
    """

    order: Int[Tensor, " cols"]
    upper: Float[Tensor, "cols cols"]
    damping: float


def columns_as_they_are(second_moment: Float[Tensor, "cols cols"]) -> Int[Tensor, " cols"]:
    """The order of the paper's algorithm 1: from left to right."""
    return torch.arange(second_moment.shape[0])


def columns_by_activation(second_moment: Float[Tensor, "cols cols"], group_size: int) -> Int[Tensor, " cols"]:
    """Groups of consecutive columns with the largest inputs first, and so the columns within each group.

    The authors' "act-order" sorts single columns and tears stored groups apart; sorting the groups, then the
    columns inside them, keeps each group's scale fitted to the weights as they are when it is reached.
    """
    energy = second_moment.diagonal().reshape(-1, group_size)
    groups = energy.sum(1).argsort(descending=True, stable=True)
    within = energy.argsort(dim=1, descending=True, stable=True)
    return (groups[:, None] * group_size + within[groups]).reshape(-1)


def prepare_compensation(
    second_moment: Float[Tensor, "cols cols"], order: Int[Tensor, " cols"], damping: float = DAMPING
) -> CompensationOrder:
    """Invert and factorise H in the given order; the damping grows tenfold until that succeeds.

    Columns whose input was never other than zero get a unit diagonal: their weights are rounded plainly.
    Raises: ValueError if H is not finite or not even a damping of a hundred means makes it positive definite.
    """
    if not torch.isfinite(second_moment).all():
        raise ValueError(
            "the second moment of the inputs holds NaN or infinite values; check the model's outputs."
        )
    h = second_moment.double()[order][:, order]
    diagonal = h.diagonal()
    mean = diagonal.mean() if diagonal.any() else torch.ones((), dtype=h.dtype)
    dead = diagonal == 0
    h[dead, dead] = mean
    while damping <= 100:
        damped = h + torch.diag(torch.full_like(diagonal, damping * mean.item()))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return CompensationOrder(order, upper.float().contiguous(), damping)
        damping = max(damping, 1e-6) * 10
    raise ValueError("the second moment of the inputs is not positive definite; it is no E[x xᵀ].")


def compensate(
    form: GroupedAffine,
    weight: Float[Tensor, "rows cols"],
    prepared: CompensationOrder,
    name: str = "weight",
) -> tuple[UInt8[Tensor, "rows cols"], AffineGrid]:
    """Codes and grid of a matrix, rounded with error compensation; deterministic.

    The grid of a group is fitted to the compensated weights when its first column is reached; each column's
    error counts by its weight in the loss, 1 / U_jj². Raises: ValueError where the group size does not divide
    the columns, the order tears a group apart, or a weight is not finite.
    """
    check_weight(form, weight, name)
    order, upper = prepared.order.to(weight.device), prepared.upper.to(weight.device)
    _check_order(form, order)
    rows, cols = weight.shape
    work = weight.float()[:, order].contiguous()
    importance = upper.diagonal().square().reciprocal()
    importance = importance / importance.amax()
    grid = empty_grid(form, work)
    codes = torch.zeros(rows, cols, dtype=torch.uint8, device=weight.device)
    for start, stop in blocks(cols, form.group_size):
        errors = compensate_block(form, work, importance, upper, start, stop, grid, codes)
        work[:, stop:].addmm_(errors, upper[start:stop, stop:], alpha=-1)
    back = order.argsort()
    groups = order[:: form.group_size].div(form.group_size, rounding_mode="floor").argsort()
    shift = grid.offset if form.zero_point is ZeroPoint.REAL else grid.zero
    grid = form.represent(grid.scale[:, groups], shift[:, groups], grid.multiplier)
    return codes[:, back].contiguous(), grid


def blocks(cols: int, group_size: int) -> list[tuple[int, int]]:
    """Spans of about BLOCK_COLUMNS columns: whole groups, or whole fractions of a large group."""
    if group_size <= BLOCK_COLUMNS:
        width = group_size * (BLOCK_COLUMNS // group_size)
    else:
        width = next(d for d in range(BLOCK_COLUMNS, 0, -1) if group_size % d == 0)
        width = group_size if width < BLOCK_COLUMNS // 4 else width
    return [(start, min(start + width, cols)) for start in range(0, cols, width)]


def output_loss(
    weight: Float[Tensor, "rows cols"],
    rounded: Float[Tensor, "rows cols"],
    second_moment: Float[Tensor, "cols cols"],
) -> float:
    """tr((W − Ŵ) H (W − Ŵ)ᵀ): the mean square of the change of the outputs, summed over outputs."""
    difference = weight.float() - rounded.float()
    return ((difference @ second_moment.float()) * difference).sum(dtype=torch.float64).item()


def naive_compensate(
    form: GroupedAffine,
    weight: Float[Tensor, "rows cols"],
    second_moment: Float[Tensor, "cols cols"],
    grid: AffineGrid,
    damping: float = DAMPING,
) -> UInt8[Tensor, "rows cols"]:
    """Codes on a given grid by the update of optimal brain surgeon, one column after the other, in float64.

    Source: Frantar et al. 2023, equations 2 and 3: the rest moves by −(w_q − ŵ_q) / [H⁻¹]_qq · [H⁻¹]_q,
    and the rounded column is eliminated from H⁻¹.
    """
    work = weight.double().clone()
    h = second_moment.double()
    inverse = torch.linalg.inv(h + torch.eye(h.shape[0], dtype=h.dtype) * damping * h.diagonal().mean())
    codes = torch.zeros(weight.shape, dtype=torch.uint8)
    for q in range(weight.shape[1]):
        g = q // form.group_size
        scale, zero, offset = (p[:, g].double() for p in (grid.scale, grid.zero, grid.offset))
        inverse_scale = torch.where(scale == 0, 0.0, 1 / scale)
        column = ((work[:, q] - offset) * inverse_scale + zero).round().clamp(0, form.levels - 1)
        codes[:, q] = column.to(torch.uint8)
        error = work[:, q] - (scale * (column - zero) + offset)
        work -= torch.outer(error / inverse[q, q], inverse[q])
        inverse = inverse - torch.outer(inverse[:, q], inverse[q]) / inverse[q, q]
    return codes


def _check_order(form: GroupedAffine, order: Tensor) -> None:
    groups = order.reshape(-1, form.group_size) // form.group_size
    if not (groups == groups[:, :1]).all():
        raise ValueError(
            f"the order of the columns tears groups of {form.group_size} apart; keep each together."
        )
