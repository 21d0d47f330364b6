"""Codes decoded in pairs have the values of codes decoded one at a time."""

import numpy as np
import pytest
import torch
from tests.kernels.tile.c.programs import both, on_each_isa

from shoestring.kernels.tile.c.choice import ISAS
from shoestring.kernels.tile.c.pairs import brain_table, can_pair, is_brain, run_length, together
from shoestring.kernels.tile.c.registers import hold
from shoestring.kernels.tile.expressions import Const
from shoestring.kernels.tile.ir import Space, Tensor
from shoestring.kernels.tile.layout import local, spatial
from shoestring.kernels.tile.programs.group_affine import (
    GroupAffineConfig,
    group_affine,
    pack,
    rows_in_blocks,
)
from shoestring.kernels.tile.types import all_narrow_types, data_type

SIX = [t for t in all_narrow_types() if t.bits == 6]


@on_each_isa("avx512", "avx512f")
@pytest.mark.parametrize("dtype", SIX, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (8, 2)])
def test_a_product_with_the_identity_is_every_code_exactly(isa, target, dtype, rows, columns):
    """Each row of x is 1 at one input: nothing is rounded and nothing of a neighbour stays."""
    assert ISAS[isa].pair_decoder(dtype) is not None
    config = GroupAffineConfig(dtype, target, 32, rows, columns, offsets=False)
    n = columns * target.group + 3
    codes = np.random.default_rng(0).permutation(np.arange(32 * n) % 64).reshape(32, n)
    arguments = {
        "m": 32, "n": n, "k": 32, "x": rows_in_blocks(torch.eye(32), rows).numpy(),
        "packed": pack(torch.from_numpy(codes), dtype, target).numpy(),
        "scales": np.ones((1, n), np.float32), "y": np.full((32, n), 7, np.float32),
    }  # fmt: skip
    got, expected = both(group_affine(config), target, isa, arguments)
    assert np.array_equal(got["y"], dtype.decode(codes).astype(np.float32))
    assert np.array_equal(got["y"], expected["y"])


@pytest.mark.parametrize(("bits", "run", "pairs"), [(3, 16, True), (4, 4, True), (5, 16, True), (6, 8, True)])
def test_runs_fill_halves(bits, run, pairs):
    assert run_length(bits) == run
    held = [_held(f"u{bits}", slots) for slots in (32, 31)]
    assert [can_pair(h) for h in held] == [pairs, False]


def _held(name, slots):
    layout = local(slots) * spatial(16)
    shape = (Const(16 * slots),)
    return hold("codes", Tensor("codes", data_type(name), shape, Space.REGISTER, layout), 16)


def test_partners_follow_one_another():
    order = together(list(range(32)), 6)
    assert sorted(order) == list(range(32))
    assert order[:4] == [0, 8, 1, 9]
    assert order[16:18] == [16, 24]
    slots = [9, 0, 1, 8]
    assert [slots[index] for index in together(slots, 6)] == [0, 8, 1, 9]


def test_which_types_are_bfloat16_numbers():
    assert all(is_brain(data_type(name)) for name in ("u6", "i6", "f6e3m2", "u8"))
    assert not is_brain(data_type("e5m2"))
    assert brain_table(data_type("u2"), "v") == "static const uint16_t v[4] = {0x0, 0x3f80, 0x4000, 0x4040};"
