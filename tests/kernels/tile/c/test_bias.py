"""Codes decoded with a surplus that is taken off afterwards have the values of codes decoded as they are."""

import numpy as np
import pytest
import torch
from tests.kernels.tile.c.programs import both, on_each_isa

from shoestring.kernels.tile.c.choice import ISAS
from shoestring.kernels.tile.programs.group_affine import (
    GroupAffineConfig,
    group_affine,
    pack,
    rows_in_blocks,
)
from shoestring.kernels.tile.types import all_narrow_types, data_type

WIDE = [t for t in all_narrow_types() if t.bits > 5 and not t.is_float]


@on_each_isa("avx512", "avx512f")
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_a_product_with_the_identity_is_every_code_exactly(isa, target, dtype):
    """Each row of x is 1 at one input: nothing is rounded and nothing of a neighbour stays."""
    config = GroupAffineConfig(dtype, target, 32, 1, 2, offsets=False)
    n = 2 * target.group + 3
    codes = np.random.default_rng(0).permutation(np.arange(32 * n) % (1 << dtype.bits)).reshape(32, n)
    arguments = {
        "m": 32, "n": n, "k": 32, "x": rows_in_blocks(torch.eye(32), 1).numpy(),
        "packed": pack(torch.from_numpy(codes), dtype, target).numpy(),
        "scales": np.ones((1, n), np.float32), "y": np.full((32, n), 7, np.float32),
    }  # fmt: skip
    got, expected = both(group_affine(config), target, isa, arguments)
    assert np.array_equal(got["y"], dtype.decode(codes).astype(np.float32))
    assert np.array_equal(got["y"], expected["y"])


def test_a_surplus_is_the_same_for_all_codes():
    for dtype in WIDE:
        bias = ISAS["avx512"].bias(dtype)
        words = np.arange(1 << dtype.bits, dtype=np.uint32) << bias.at
        noise = np.uint32(0xFFFFFFFF) & ~np.uint32(bias.keep)
        floats = ((words | noise) & np.uint32(bias.keep) ^ np.uint32(bias.flip)).view(np.float32)
        assert np.array_equal(floats - np.float32(bias.surplus), dtype.decode(np.arange(1 << dtype.bits)))


@pytest.mark.parametrize(("name", "has"), [("u6", True), ("i8", True), ("u5", False), ("f6e3m2", False)])
def test_where_a_table_is_faster_there_is_no_surplus(name, has):
    assert (ISAS["avx512"].bias(data_type(name)) is not None) == has
    assert ISAS["avx2"].bias(data_type(name)) is None
