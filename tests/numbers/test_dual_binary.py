"""Two binary planes are the nearest of four levels, in both mirror images, and beat plain rounding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers.affine_fit import fit_min_max
from shoestring.numbers.dual_binary import DualBinary, naive_assign, pack_planes, unpack_planes
from shoestring.numbers.grouped_affine import GroupedAffine, ZeroPoint


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(
    rows=st.integers(1, 9),
    groups=st.integers(1, 4),
    size=st.sampled_from([1, 3, 16, 64]),
    seed=st.integers(0, 99),
)
def test_planes_are_those_of_the_nearest_level(rows, groups, size, seed):
    form, weight = DualBinary(size), normal(rows, groups * size, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    a2 = -torch.rand(rows, groups, generator=generator) - 0.05
    a1 = -a2 + torch.rand(rows, groups, generator=generator) + 0.05  # unequal distances, too
    sign = torch.where(torch.rand(rows, groups, generator=generator) < 0.5, -1.0, 1.0)
    levels = torch.stack((a1 * sign, a2 * sign), -1)
    assert form.order(levels).all()
    first, second = form.assign(weight, levels)
    nearest = naive_assign(weight, levels, size)
    assert torch.equal(first, nearest[0])
    assert torch.equal(second, nearest[1])
    decoded = form.decode((first, second), levels)
    wide = levels.repeat_interleave(size, 1)
    torch.testing.assert_close(decoded, wide[..., 0] * first + wide[..., 1] * second, rtol=0, atol=0)


def test_at_first_thresholds_lie_half_way():
    """Levels −s, 0, s, 2s: planes flip at −s/2, s/2 and 3s/2."""
    form, levels = DualBinary(6), torch.tensor([[[2.0, -1.0]]])
    weight = torch.tensor([[-0.51, -0.49, 0.49, 0.51, 1.49, 1.51]])
    first, second = form.assign(weight, levels)
    assert first.tolist() == [[False, False, False, True, True, True]]
    assert second.tolist() == [[True, False, False, True, True, False]]


@pytest.mark.parametrize("size", [64, 128])
def test_gaussian_groups_come_out_as_the_optimum_says(size):
    """Error 0.12 of the variance and planes of 0.31 and 0.53 ones, against 0.20 of min-max rounding."""
    form, weight = DualBinary(size), normal(200, 1024)
    levels = form.fit(weight)
    first, second = form.assign(weight, levels)
    error = (weight - form.decode((first, second), levels)).square().mean()
    assert 0.10 < error < 0.135
    assert 0.27 < first.float().mean() < 0.37
    assert 0.48 < second.float().mean() < 0.57
    assert (levels[..., 0] < 0).float().mean() == pytest.approx(0.5, abs=0.1)  # mirror images are as likely


@given(scale=st.sampled_from([1e-4, 1.0, 50.0]), heavy=st.booleans(), seed=st.integers(0, 50))
def test_never_worse_than_plain_two_bit_rounding(scale, heavy, seed):
    weight = scale * normal(6, 256, seed=seed)
    if heavy:
        weight = weight * normal(6, 256, seed=seed + 1).abs()
    form, plain = DualBinary(64), GroupedAffine(2, 64, ZeroPoint.INTEGER)
    levels = form.fit(weight)
    ours = (weight - form.decode(form.assign(weight, levels), levels)).square().sum()
    grid = fit_min_max(plain, weight)
    theirs = (weight - plain.decode(plain.encode(weight, grid), grid)).square().sum()
    assert ours <= theirs


def test_important_columns_decide():
    weight = normal(40, 64)
    importance = torch.ones(64)
    importance[:8] = 1000.0
    form = DualBinary(64)

    def error(levels):
        return ((weight - form.decode(form.assign(weight, levels), levels)).square() * importance).sum()

    weighted, plain = form.fit(weight, importance), form.fit(weight)
    assert error(weighted) < error(plain)


def test_levels_are_what_float16_holds_and_zeros_stay_zeros():
    weight = normal(5, 192)
    weight[2, 64:128] = 0
    form = DualBinary(64)
    levels = form.fit(weight)
    assert torch.equal(levels, levels.half().float())
    assert torch.equal(levels[2, 1], torch.zeros(2))
    planes = form.assign(weight, levels)
    assert not planes[0][2, 64:128].any()
    assert not planes[1][2, 64:128].any()
    keep = torch.ones(5, 3, dtype=torch.bool)
    keep[2, 1] = False
    assert form.order(levels)[keep].all()


@given(rows=st.integers(1, 5), cols=st.integers(1, 70), seed=st.integers(0, 50))
def test_planes_are_packed_and_unpacked(rows, cols, seed):
    generator = torch.Generator().manual_seed(seed)
    planes = tuple(torch.rand(rows, cols, generator=generator) < 0.4 for _ in range(2))
    packed = pack_planes(planes)
    assert all(p.shape == (rows, (cols + 7) // 8) and p.dtype == torch.uint8 for p in packed)
    again = unpack_planes(*packed, cols)
    assert torch.equal(again[0], planes[0])
    assert torch.equal(again[1], planes[1])
    if cols > 10:
        assert packed[0][0, 1] >> 2 & 1 == planes[0][0, 10]


def test_bytes():
    assert DualBinary(64).nbytes(100, 640) == 100 * 640 // 4 + 100 * 640 // 64 * 4
    assert 16 / (8 * DualBinary(64).nbytes(64, 4096) / (64 * 4096)) == 6.4
    assert 16 / (8 * DualBinary(128).nbytes(64, 4096) / (64 * 4096)) == pytest.approx(7.11, abs=0.01)
    shapes = DualBinary(64).tensors(100, 640)
    sizes = {torch.uint8: 1, torch.float16: 2}
    stored = sum(sizes[dtype] * torch.Size(shape).numel() for shape, dtype in shapes.values())
    assert stored == DualBinary(64).nbytes(100, 640)


@given(seed=st.integers(0, 200), far=st.floats(0.1, 5))
def test_projection_puts_levels_in_order_and_leaves_good_ones(seed, far):
    form = DualBinary(4)
    floor = torch.full((3, 2), 0.01)
    levels = far * normal(3, 2, 2, seed=seed)
    projected = form.project(levels, floor)
    assert form.order(projected).all()
    a1, a2 = projected.unbind(-1)
    assert (a1.abs() >= 0.01).all()
    assert (a2.abs() >= 0.01).all()
    assert ((a1 + a2).abs() >= 0.01 * (1 - 1e-5)).all()
    assert ((a1 < 0) == (levels[..., 0] < 0)).all()
    torch.testing.assert_close(form.project(projected, floor), projected)


def test_bad_input():
    form = DualBinary(64)
    with pytest.raises(ValueError, match="96 inputs, no whole groups of group_size=64.*pad"):
        form.fit(normal(2, 96))
    for bad in (torch.nan, torch.inf):
        weight = normal(2, 64)
        weight[1, 3] = bad
        with pytest.raises(ValueError, match="'q_proj' holds NaN or infinite"):
            form.fit(weight, name="q_proj")
    with pytest.raises(ValueError, match="float16 levels cannot reach"):
        form.fit(1e6 * normal(2, 64))
    with pytest.raises(ValueError, match="importance"):
        form.fit(normal(2, 64), -torch.ones(64))
    with pytest.raises(ValueError, match="group_size=0"):
        DualBinary(0)
