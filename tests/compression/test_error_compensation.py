"""GPTQ equals its equations, beats plain rounding where inputs correlate, and equals it where they do not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.compression.error_compensation import (
    blocks,
    columns_as_they_are,
    columns_by_activation,
    compensate,
    naive_compensate,
    output_loss,
    prepare_compensation,
)
from shoestring.kernels import grouped_rounding
from shoestring.kernels.grouped_rounding import fit_groups
from shoestring.numbers import GroupedAffine, ZeroPoint, fit_least_squares
from shoestring.numbers.affine_fit import weighted_errors

forms = st.builds(
    GroupedAffine,
    bits=st.integers(2, 8),
    group_size=st.sampled_from([1, 5, 8, 32]),
    zero_point=st.sampled_from(list(ZeroPoint)),
    scale_bits=st.sampled_from([6, 8, 16]),
)


def correlated(cols: int, seed: int, rank: int | None = None) -> torch.Tensor:
    """E[x xᵀ] of inputs with a few strong directions and unequal sizes."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(cols, rank or cols, generator=generator) * torch.linspace(0.1, 2, cols)[:, None]
    x = torch.randn(4 * cols, rank or cols, generator=generator) @ mix.T
    return x.T @ x / x.shape[0]


def weights(rows: int, cols: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)) * 0.05


@settings(max_examples=12)
@given(form=forms, rows=st.integers(1, 6), groups=st.integers(1, 4), seed=st.integers(0, 50))
def test_codes_equal_the_equations_of_the_paper(form, rows, groups, seed):
    """The naive form is given the grids that were fitted on the way, and must find the same codes."""
    cols = groups * form.group_size
    weight, moment = weights(rows, cols, seed), correlated(cols, seed)
    codes, grid = compensate(form, weight, prepare_compensation(moment, columns_as_they_are(moment)))
    naive = naive_compensate(form, weight, moment, grid)
    # Float32 against float64: a weight on the border of two codes may fall either way, and moves the rest.
    assert (codes != naive).float().mean() < 0.02
    losses = [output_loss(weight, form.decode(c, grid), moment) for c in (codes, naive)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02, abs=1e-9)


@given(form=forms, rows=st.integers(1, 5), groups=st.integers(1, 5), seed=st.integers(0, 50))
def test_the_compiled_block_equals_plain_torch(form, rows, groups, seed):
    cols = groups * form.group_size
    weight, moment = weights(rows, cols, seed), correlated(cols, seed)
    prepared = prepare_compensation(moment, columns_by_activation(moment, form.group_size))
    fast_codes, fast_grid = compensate(form, weight, prepared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouped_rounding, "_library_or_notice", lambda what: None)
        plain_codes, plain_grid = compensate(form, weight, prepared)
    losses = [
        output_loss(weight, form.decode(c, g), moment)
        for c, g in ((fast_codes, fast_grid), (plain_codes, plain_grid))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05, abs=1e-9)
    assert (fast_codes != plain_codes).float().mean() < 0.05


@pytest.mark.parametrize("zero_point", list(ZeroPoint))
@pytest.mark.parametrize("scale_bits", [6, 8, 16])
@pytest.mark.parametrize(("bits", "group_size"), [(2, 32), (3, 5), (4, 7), (8, 16)])
def test_the_compiled_fit_equals_plain_torch(zero_point, scale_bits, bits, group_size):
    """Sums are taken in another order, so a few groups may settle on another grid that is as good."""
    form = GroupedAffine(bits, group_size, zero_point, scale_bits)
    weight = weights(64, 6 * group_size, bits)
    importance = torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(0)) + 0.01
    fast, plain = fit_groups(form, weight, importance), fit_least_squares(form, weight, importance)
    errors = [weighted_errors(form, weight, g, importance).sum().item() for g in (fast, plain)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)
    assert (fast.scale == plain.scale).float().mean() > 0.98
    stored = form.store(form.encode(weight, fast), fast)
    assert torch.equal(form.grid(stored, weight.shape[1]).scale, fast.scale)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("zero_point", list(ZeroPoint))
@pytest.mark.parametrize("scale_bits", [16, 6])
def test_correlated_inputs_lose_less_than_by_rounding_to_nearest(bits, zero_point, scale_bits):
    form = GroupedAffine(bits, 32, zero_point, scale_bits)
    weight, moment = weights(48, 192, 1), correlated(192, 2, rank=60)
    grid = fit_groups(form, weight)
    nearest = output_loss(weight, form.decode(form.encode(weight, grid), grid), moment)
    for order in (columns_as_they_are(moment), columns_by_activation(moment, 32)):
        codes, grid = compensate(form, weight, prepare_compensation(moment, order))
        assert output_loss(weight, form.decode(codes, grid), moment) < nearest


@given(form=forms, seed=st.integers(0, 50))
def test_uncorrelated_inputs_make_it_plain_rounding(form, seed):
    weight = weights(4, 3 * form.group_size, seed)
    moment = torch.eye(weight.shape[1])
    codes, grid = compensate(form, weight, prepare_compensation(moment, columns_as_they_are(moment)))
    plain = fit_groups(form, weight)
    assert torch.equal(grid.scale, plain.scale)
    assert torch.equal(codes, form.encode(weight, plain))


def test_the_order_keeps_groups_together_and_starts_with_the_largest_inputs():
    moment = torch.diag(torch.tensor([1.0, 2.0, 9.0, 8.0, 0.0, 20.0]))
    assert columns_by_activation(moment, 2).tolist() == [5, 4, 2, 3, 1, 0]
    with pytest.raises(ValueError, match="tears groups of 3 apart"):
        compensate(
            GroupedAffine(4, 3),
            weights(2, 6, 0),
            prepare_compensation(moment, torch.tensor([5, 4, 2, 3, 1, 0])),
        )


@given(groups=st.integers(1, 40), size=st.sampled_from([1, 3, 32, 64, 100, 128, 192, 576, 131, 1536]))
def test_blocks_cover_all_columns_once_and_never_cut_a_group_before_its_start(groups, size):
    spans = blocks(groups * size, size)
    assert [c for start, stop in spans for c in range(start, stop)] == list(range(groups * size))
    for start, stop in spans:
        # A block starts with a group, or lies inside one that was fitted in an earlier block.
        assert start % size == 0 or (stop - 1) // size == start // size


def test_a_large_group_is_compensated_across_its_blocks():
    form = GroupedAffine(3, 192)
    weight, moment = weights(8, 384, 0), correlated(384, 1, rank=100)
    codes, grid = compensate(form, weight, prepare_compensation(moment, columns_as_they_are(moment)))
    naive = naive_compensate(form, weight, moment, grid)
    assert (codes != naive).float().mean() < 0.02


def test_a_singular_moment_is_damped_until_it_factorises():
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    prepared = prepare_compensation(x.T @ x, torch.arange(64), damping=0.0)
    assert prepared.damping > 0
    assert torch.isfinite(prepared.upper).all()


def test_columns_that_were_never_active_are_rounded_plainly():
    form = GroupedAffine(4, 8)
    weight, moment = weights(5, 24, 0), correlated(24, 0)
    moment[8:16], moment[:, 8:16] = 0, 0
    codes, _ = compensate(form, weight, prepare_compensation(moment, columns_as_they_are(moment)))
    plain = fit_groups(form, weight[:, 8:16])
    assert torch.equal(codes[:, 8:16], form.encode(weight[:, 8:16], plain))
    nothing = prepare_compensation(torch.zeros(24, 24), torch.arange(24))
    assert torch.equal(compensate(form, weight, nothing)[0], form.encode(weight, fit_groups(form, weight)))


def test_bad_moments_are_refused():
    with pytest.raises(ValueError, match="second moment of the inputs holds NaN"):
        prepare_compensation(torch.full((4, 4), float("nan")), torch.arange(4))
    with pytest.raises(ValueError, match="not positive definite; it is no E"):
        prepare_compensation(torch.tensor([[1.0, -1e4], [-1e4, 1.0]]), torch.arange(2))
    with pytest.raises(ValueError, match="'q' holds NaN"):
        compensate(
            GroupedAffine(4, 2), torch.full((2, 4), float("nan")),
            prepare_compensation(torch.eye(4), torch.arange(4)), "q",
        )  # fmt: skip
