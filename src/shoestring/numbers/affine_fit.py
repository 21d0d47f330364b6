"""Choose the scale and zero of every group: by its extremes, or by the least weighted squared error.

The search tries ranges narrower and wider than the extremes; each gives codes, the codes give the best scale
and offset in closed form (weighted least squares), and the winner is refined by alternating the two steps.

Source: Jacob et al. 2018, section 3 (extremes); alternating refinement: Lloyd 1982, "Least Squares
Quantization in PCM", restricted to equidistant levels.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.numbers.grouped_affine import AffineGrid, GroupedAffine, ZeroPoint

RANGE_FACTORS = tuple(0.25 + 0.05 * step for step in range(18))
"""Candidate ranges, in units of the range between the extremes: 0.25, 0.30 … 1.10."""

REFINEMENTS = 2
"""Alternations of codes and least squares after the search."""

CHUNK_ELEMENTS = 1 << 20


def fit_min_max(form: GroupedAffine, weight: Float[Tensor, "rows cols"], name: str = "weight") -> AffineGrid:
    """The finest grid that clips no weight (before its scale is rounded to what the format stores).

    Raises: ValueError where the group size does not divide the columns or a weight is not finite.
    """
    check_weight(form, weight, name)
    return extreme_grid(form, weight)


def extreme_grid(
    form: GroupedAffine, weight: Float[Tensor, "rows cols"], multiplier: Float[Tensor, " rows"] | None = None
) -> AffineGrid:
    """`fit_min_max` of a checked weight, with the row multipliers of an earlier fit where they are given."""
    groups = weight.float().reshape(weight.shape[0], -1, form.group_size)
    return form.represent(*_extremes(form, groups, 1.0), multiplier)


def fit_least_squares(
    form: GroupedAffine,
    weight: Float[Tensor, "rows cols"],
    importance: Float[Tensor, " cols"] | None = None,
    name: str = "weight",
    multiplier: Float[Tensor, " rows"] | None = None,
) -> AffineGrid:
    """The grid of (nearly) least Σ importance·(w − ŵ)²; never worse than `fit_min_max` in any group.

    importance: non-negative weight of each column's error, e.g. the mean square of that input; default equal.
    multiplier: the row multipliers of an earlier fit, where scales are codes.

    Raises: ValueError as `fit_min_max` does.
    """
    check_weight(form, weight, name)
    rows, cols = weight.shape
    step = max(1, CHUNK_ELEMENTS // cols)
    spans = [slice(start, start + step) for start in range(0, rows, step)]
    parts = [
        _fit_rows(form, weight[span], importance, None if multiplier is None else multiplier[span])
        for span in spans
    ]
    scale, zero, offset = (torch.cat([getattr(p, key) for p in parts]) for key in ("scale", "zero", "offset"))
    multipliers = [p.multiplier for p in parts if p.multiplier is not None]
    return AffineGrid(scale, zero, offset, torch.cat(multipliers) if multipliers else None)


def naive_fit_min_max(form: GroupedAffine, weight: Float[Tensor, "rows cols"]) -> AffineGrid:
    """`fit_min_max`, group by group."""
    rows, cols = weight.shape
    scale, shift = torch.empty(rows, form.groups(cols)), torch.empty(rows, form.groups(cols))
    for r in range(rows):
        for g in range(form.groups(cols)):
            group = weight[r, g * form.group_size : (g + 1) * form.group_size].tolist()
            low, high, half = min(group), max(group), form.levels // 2
            if form.zero_point is ZeroPoint.SYMMETRIC:
                scale[r, g] = max(high / (half - 1), -low / half)
            elif form.zero_point is ZeroPoint.INTEGER:
                low, high = min(low, 0.0), max(high, 0.0)
                scale[r, g] = (high - low) / (form.levels - 1)
                shift[r, g] = -low / scale[r, g] if high > low else 0.0
            else:
                scale[r, g], shift[r, g] = (high - low) / (form.levels - 1), low
    return form.represent(scale, shift)


def weighted_errors(
    form: GroupedAffine,
    weight: Float[Tensor, "rows cols"],
    grid: AffineGrid,
    importance: Float[Tensor, " cols"] | None = None,
) -> Float[Tensor, "rows groups"]:
    """Σ importance·(w − ŵ)² of every group when the weights are rounded to the grid."""
    error = (weight.float() - form.decode(form.encode(weight, grid), grid)).square()
    if importance is not None:
        error = error * importance.float()
    return error.reshape(weight.shape[0], -1, form.group_size).sum(-1)


def check_weight(form: GroupedAffine, weight: Float[Tensor, "rows cols"], name: str) -> None:
    """Raises: ValueError if the group size does not divide the columns or a weight is not finite."""
    form.groups(weight.shape[1], name)
    if not torch.isfinite(weight).all():
        raise ValueError(f"{name!r} holds NaN or infinite weights; it cannot be quantised.")


def _extremes(form: GroupedAffine, groups: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Scale and shift (see `GroupedAffine.represent`) of `factor` times the range of each group."""
    low, high = groups.amin(-1), groups.amax(-1)
    half = form.levels // 2
    if form.zero_point is ZeroPoint.SYMMETRIC:
        scale = torch.maximum(high / (half - 1), -low / half) * factor
        return scale, torch.zeros_like(scale)
    if form.zero_point is ZeroPoint.INTEGER:
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = (high - low) * (factor / (form.levels - 1))
        return scale, torch.where(scale > 0, -low * factor / scale, 0.0)
    middle, reach = (high + low) / 2, (high - low) * (factor / 2)
    return (high - low) * (factor / (form.levels - 1)), middle - reach


def _fit_rows(
    form: GroupedAffine, weight: Tensor, importance: Tensor | None, multiplier: Tensor | None
) -> AffineGrid:
    groups = weight.float().reshape(weight.shape[0], -1, form.group_size)
    h = torch.ones_like(weight[0]) if importance is None else importance
    h = h.float().reshape(1, -1, form.group_size)
    best_scale, best_shift = _extremes(form, groups, 1.0)
    best = torch.full_like(best_scale, float("inf"))
    for factor in RANGE_FACTORS:
        scale, shift = _extremes(form, groups, factor)
        for sign in _signs(form):
            scale_now, shift_now, error = _least_squares(form, groups, h, scale * sign, shift)
            better = error < best
            best = torch.where(better, error, best)
            best_scale = torch.where(better, scale_now, best_scale)
            best_shift = torch.where(better, shift_now, best_shift)
    grid = extreme_grid(form, weight, multiplier)
    grid = _better_grid(form, weight, importance, grid, (best_scale, best_shift))
    for _ in range(REFINEMENTS):
        shift = grid.offset if form.zero_point is ZeroPoint.REAL else grid.zero
        scale, shift, _ = _least_squares(form, groups, h, grid.scale, shift)
        grid = _better_grid(form, weight, importance, grid, (scale, shift))
    return grid


def _signs(form: GroupedAffine) -> tuple[int, ...]:
    """A symmetric grid has one more level below zero than above: signed scales may turn it round."""
    return (1, -1) if form.zero_point is ZeroPoint.SYMMETRIC and form.scale_type is not None else (1,)


def _least_squares(
    form: GroupedAffine, groups: Tensor, h: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes on the grid (scale, shift), then the scale and shift that suit them best, and their error."""
    inverse = torch.where(scale == 0, 0.0, 1.0 / scale)[..., None]
    if form.zero_point is ZeroPoint.REAL:
        codes = ((groups - shift[..., None]) * inverse).round().clamp(0, form.levels - 1)
        total = h.sum(-1).clamp(min=torch.finfo(torch.float32).tiny)
        mean_w, mean_q = (h * groups).sum(-1) / total, (h * codes).sum(-1) / total
        centred = codes - mean_q[..., None]
        spread = (h * centred.square()).sum(-1)
        fitted = (h * centred * (groups - mean_w[..., None])).sum(-1) / spread
        new_scale = torch.where(spread > 0, fitted, scale)
        new_shift = mean_w - new_scale * mean_q
        error = (h * (groups - new_scale[..., None] * codes - new_shift[..., None]).square()).sum(-1)
        return new_scale, new_shift, error
    zero = torch.full_like(scale, form.levels // 2)
    if form.zero_point is ZeroPoint.INTEGER:
        zero = shift.round().clamp(0, form.levels - 1)
    zero = zero[..., None]
    signed = (groups * inverse + zero).round().clamp(0, form.levels - 1) - zero
    square = (h * signed.square()).sum(-1)
    new_scale = torch.where(square > 0, (h * signed * groups).sum(-1) / square, scale)
    error = (h * (groups - new_scale[..., None] * signed).square()).sum(-1)
    return new_scale, shift, error


def _better_grid(
    form: GroupedAffine,
    weight: Tensor,
    importance: Tensor | None,
    grid: AffineGrid,
    proposal: tuple[Tensor, Tensor],
) -> AffineGrid:
    """Group by group, the proposal where it loses less than the grid once it is rounded to what is stored."""
    scale, shift = proposal
    if form.scale_type is None:
        scale = scale.clamp(min=0)
    other = form.represent(scale, shift, grid.multiplier)
    better = weighted_errors(form, weight, other, importance) < weighted_errors(
        form, weight, grid, importance
    )
    return AffineGrid(
        torch.where(better, other.scale, grid.scale),
        torch.where(better, other.zero, grid.zero),
        torch.where(better, other.offset, grid.offset),
        grid.multiplier,
    )
