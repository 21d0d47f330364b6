"""Fit grids and round with error compensation in compiled loops; without a compiler, in plain torch.

Source: Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", algorithm 1 (the block); the fit is that of `shoestring.numbers.affine_fit`.
"""

import ctypes
import functools
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import Cost, states_cost
from shoestring.kernels.native import load_library
from shoestring.notices import notice_fallback
from shoestring.numbers import affine_fit
from shoestring.numbers.affine_fit import check_weight, extreme_grid, fit_least_squares
from shoestring.numbers.grouped_affine import AffineGrid, GroupedAffine, ZeroPoint

# Operations for each weight, as the loops in C write them.
_CODE = 6  # minus offset, over scale, plus zero, round, clamp at both ends
_VALUE = 3  # minus zero, times scale, plus offset
_WEIGHTED_SQUARE = 4  # difference, square, times importance, sum
_LEAST_SQUARES = {ZeroPoint.SYMMETRIC: 17, ZeroPoint.INTEGER: 17, ZeroPoint.REAL: 24}


class _Format(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("bits", "zero_point", "scale_bits", "group")),
        ("factors", ctypes.c_int32),
        ("refinements", ctypes.c_int32),
        ("factor", ctypes.POINTER(ctypes.c_float)),
    )


def _fit_flops(form: GroupedAffine, weights: int) -> int:
    """The extremes, a least-squares fit for each candidate range and refinement, the error of each grid."""
    signs = 2 if form.zero_point is ZeroPoint.SYMMETRIC and form.scale_type is not None else 1
    fits = signs * len(affine_fit.RANGE_FACTORS) + affine_fit.REFINEMENTS
    errors = 2 + affine_fit.REFINEMENTS
    each = 2 + fits * _LEAST_SQUARES[form.zero_point] + errors * (_CODE + _VALUE + _WEIGHTED_SQUARE)
    return weights * each


def _grid_bytes(form: GroupedAffine, weights: int) -> int:
    """Scale, zero and offset of every group that is begun, float32."""
    return 3 * 4 * -(-weights // form.group_size)


def _cost_of_fit(
    form: GroupedAffine, weight: Tensor, importance: Tensor | None = None, name: str = "weight"
) -> Cost:
    read = weight.nbytes + (0 if importance is None else importance.nbytes)
    return Cost(_fit_flops(form, weight.numel()), read + _grid_bytes(form, weight.numel()))


def _cost_of_block(
    form: GroupedAffine,
    weight: Tensor,
    importance: Tensor,
    upper: Tensor,
    start: int,
    stop: int,
    grid: AffineGrid,
    codes: Tensor,
) -> Cost:
    """Fit, round, error over the diagonal, and a multiply-add for each later column of the block."""
    rows, width = weight.shape[0], stop - start
    weights = rows * width
    spread = rows * width * (width - 1)
    moved = 4 * (2 * weights + width + width * (width + 1) // 2 + weights) + weights
    flops = _fit_flops(form, weights) + weights * (_CODE + _VALUE + 2) + spread
    return Cost(flops, moved + rows * _grid_bytes(form, width))


@states_cost(_cost_of_fit)
def fit_groups(
    form: GroupedAffine,
    weight: Float[Tensor, "rows cols"],
    importance: Float[Tensor, " cols"] | None = None,
    name: str = "weight",
) -> AffineGrid:
    """`fit_least_squares`, compiled. Raises: ValueError as it does."""
    library = _library_or_notice("fit of the scales") if weight.device.type == "cpu" else None
    if library is None:
        return fit_least_squares(form, weight, importance, name)
    check_weight(form, weight, name)
    weight = weight.float().contiguous()
    rows, cols = weight.shape
    h = torch.ones(cols) if importance is None else importance.float().contiguous()
    grid = empty_grid(form, weight)
    multiplier = grid.multiplier
    failed = library.fit_groups(
        _format(form), weight.data_ptr(), h.data_ptr(), rows, cols,
        None if multiplier is None else multiplier.data_ptr(),
        grid.scale.data_ptr(), grid.zero.data_ptr(), grid.offset.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    _raise_if(failed, form)
    return form.represent(grid.scale, _shift(form, grid), multiplier)


def empty_grid(form: GroupedAffine, weight: Float[Tensor, "rows cols"]) -> AffineGrid:
    """A grid to be filled; its multipliers are those that the extremes of the weight ask for."""
    shape = (weight.shape[0], form.groups(weight.shape[1]))
    scale, zero, offset = (torch.zeros(shape, device=weight.device) for _ in range(3))
    return AffineGrid(scale, zero, offset, extreme_grid(form, weight).multiplier)


@states_cost(_cost_of_block)
def compensate_block(
    form: GroupedAffine,
    weight: Float[Tensor, "rows cols"],
    importance: Float[Tensor, " cols"],
    upper: Float[Tensor, "cols cols"],
    start: int,
    stop: int,
    grid: AffineGrid,
    codes: UInt8[Tensor, "rows cols"],
) -> Float[Tensor, "rows width"]:
    """Round columns start … stop−1 of `weight` in place, spreading each column's error over later ones.

    upper: the upper Cholesky factor of the inverse second moment. A group is fitted when its first column is
    reached; `grid` and `codes` are filled. Returns the scaled errors, of which the columns after the block
    are still to be relieved: weight[:, stop:] −= errors @ upper[start:stop, stop:]. All float32, contiguous.
    """
    library = _library_or_notice("error compensation") if weight.device.type == "cpu" else None
    if library is None:
        return plain_compensate_block(form, weight, importance, upper, start, stop, grid, codes)
    rows, cols = weight.shape
    errors = torch.empty(rows, stop - start)
    failed = library.compensate_block(
        _format(form), weight.data_ptr(), importance.data_ptr(), upper.data_ptr(), rows, cols, start, stop,
        None if grid.multiplier is None else grid.multiplier.data_ptr(),
        grid.scale.data_ptr(), grid.zero.data_ptr(), grid.offset.data_ptr(), codes.data_ptr(),
        errors.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    _raise_if(failed, form)
    return errors


def plain_compensate_block(
    form: GroupedAffine,
    weight: Float[Tensor, "rows cols"],
    importance: Float[Tensor, " cols"],
    upper: Float[Tensor, "cols cols"],
    start: int,
    stop: int,
    grid: AffineGrid,
    codes: UInt8[Tensor, "rows cols"],
) -> Float[Tensor, "rows width"]:
    """`compensate_block` in plain torch, all rows of a column at once."""
    errors = torch.empty(weight.shape[0], stop - start, device=weight.device)
    one = GroupedAffine(form.bits, 1, form.zero_point, form.scale_bits)
    for column in range(start, stop):
        group = column // form.group_size
        if column % form.group_size == 0:
            span = slice(column, column + form.group_size)
            fitted = fit_least_squares(form, weight[:, span], importance[span], multiplier=grid.multiplier)
            for part in ("scale", "zero", "offset"):
                getattr(grid, part)[:, group] = getattr(fitted, part)[:, 0]
        at = slice(column, column + 1)
        own = slice(group, group + 1)
        cell = AffineGrid(grid.scale[:, own], grid.zero[:, own], grid.offset[:, own], grid.multiplier)
        codes[:, at] = one.encode(weight[:, at], cell)
        rounded = one.decode(codes[:, at], cell)
        error = (weight[:, at] - rounded) / upper[column, column]
        weight[:, at] = rounded
        errors[:, column - start] = error[:, 0]
        weight[:, column + 1 : stop] -= error * upper[column, column + 1 : stop]
    return errors


def _shift(form: GroupedAffine, grid: AffineGrid) -> Tensor:
    return grid.offset if form.zero_point is ZeroPoint.REAL else grid.zero


def _format(form: GroupedAffine) -> _Format:
    zero_point = list(ZeroPoint).index(form.zero_point)
    factors = affine_fit.RANGE_FACTORS
    return _Format(
        form.bits, zero_point, form.scale_bits, form.group_size, len(factors), affine_fit.REFINEMENTS,
        (ctypes.c_float * len(factors))(*factors),
    )  # fmt: skip


def _raise_if(failed: int, form: GroupedAffine) -> None:
    if failed:
        raise MemoryError(f"no memory for a group of {form.group_size} weights")


def _library_or_notice(what: str) -> ctypes.CDLL | None:
    try:
        return _library()
    except NoCompiler as error:
        notice_fallback(what, f"plain torch instead of the compiled loop ({error})")
        return None


@functools.cache
def _library() -> ctypes.CDLL:
    library = load_library(Path(__file__).with_suffix(".c"), extra_flags=("-ffp-contract=off",))
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    form = ctypes.POINTER(_Format)
    library.fit_groups.argtypes = [form, pointer, pointer, size, size, *[pointer] * 4, number]
    library.compensate_block.argtypes = [
        form, pointer, pointer, pointer, size, size, size, size, *[pointer] * 6, number,
    ]  # fmt: skip
    library.fit_groups.restype = library.compensate_block.restype = number
    return library
