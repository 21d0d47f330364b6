"""Activations as whole numbers of a few bytes: compiled against torch, and how near they are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.kernels.limbs import LARGEST, RUN, naive_split_in_limbs, split_in_limbs


def joined(parts, factors, rows, group_size):
    """The numbers that limbs stand for, in float64 [rows, inputs]."""
    blocks, runs, limbs, block, _ = parts.shape
    groups = factors.shape[1]
    counted = parts.double().reshape(blocks, groups, runs // groups, limbs, block, RUN)
    x = (counted * factors.double()[:, :, None, ..., None]).sum(3)
    by_row = x.permute(0, 3, 1, 2, 4).reshape(blocks * block, groups, -1)
    assert not by_row[rows:].any()
    assert not by_row[:, :, group_size:].any()
    return by_row[:rows, :, :group_size].reshape(rows, -1)


@given(
    rows=st.integers(1, 5), groups=st.integers(1, 3), size=st.sampled_from([1, 20, 32, 37, 128]),
    limbs=st.sampled_from([1, 2, 3]), block=st.sampled_from([1, 2, 4]), magnitude=st.integers(-140, 120),
)  # fmt: skip
def test_equals_torch_and_is_within_half_a_unit(rows, groups, size, limbs, block, magnitude):
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, groups * size, generator=generator) * 2.0**magnitude
    x[0, :size] = 0
    got, expected = (split(x, size, limbs, block) for split in (split_in_limbs, naive_split_in_limbs))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    most = x.double().reshape(rows, groups, size).abs().amax(-1, keepdim=True)
    bound = (most / LARGEST[limbs]).clamp(min=2.0**-126).expand(-1, -1, size).reshape(x.shape)
    assert ((joined(*got, rows, size) - x.double()).abs() <= bound).all()


def test_bfloat16_numbers_near_the_largest_are_kept_exactly():
    x = (torch.rand(4, 256, generator=torch.Generator().manual_seed(0)) + 1 / 64).bfloat16()
    x[:, ::2] *= -1
    kept = x.abs() >= 2.0**-7
    assert torch.equal(joined(*split_in_limbs(x, 64, 2, 4), 4, 64)[kept], x.double()[kept])


def test_what_is_not_finite_spoils_its_group_alone():
    x = torch.ones(2, 64)
    x[0, 3], x[1, 40] = torch.inf, torch.nan
    for split in (split_in_limbs, naive_split_in_limbs):
        parts, factors = split(x, 32, 2, 1)
        assert factors.isnan().all(-1).all(-1).tolist() == [[True, False], [False, True]]
        assert torch.equal(parts[0, 0], torch.zeros_like(parts[0, 0]))


@pytest.mark.parametrize("split", [split_in_limbs, naive_split_in_limbs])
def test_bad_input(split):
    with pytest.raises(ValueError, match="limbs=4; use 2 for halves, 3 for float32, or 1"):
        split(torch.ones(1, 32), 32, 4, 1)
    with pytest.raises(ValueError, match="33 inputs are not whole groups of group_size=32"):
        split(torch.ones(1, 33), 32, 2, 1)
