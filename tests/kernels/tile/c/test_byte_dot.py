"""Codes multiplied as bytes have the sums that multiply-adds of floats have, to the last bit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.kernels.tile.c.programs import both, on_each_isa

from shoestring.kernels.limbs import LARGEST, split_in_limbs
from shoestring.kernels.tile.c.byte_parts import byte_parts
from shoestring.kernels.tile.c.choice import ISAS
from shoestring.kernels.tile.c.renderer import render
from shoestring.kernels.tile.prepare import prepare
from shoestring.kernels.tile.programs.group_affine import GroupAffineConfig, group_limbs, pack
from shoestring.kernels.tile.target import AVX512
from shoestring.kernels.tile.types import all_narrow_types, cast_table, data_type

BYTES = [t for t in all_narrow_types() if ISAS["avx512vnni"].multiplies_bytes(t)]


@given(dtype=st.sampled_from(all_narrow_types()))
def test_bytes_put_together_are_the_values(dtype):
    parts = byte_parts(dtype)
    if parts is not None:
        assert np.array_equal(parts.values(), cast_table(dtype))
        assert 0 <= parts.surplus <= 255


@pytest.mark.parametrize(
    ("name", "count"), [("u8", 1), ("i7", 1), ("f5e2m2", 1), ("f6e3m2", 2), ("f8e4m3", None), ("e5m2", None)]
)
def test_how_many_bytes_a_type_takes(name, count):
    parts = byte_parts(data_type(name))
    assert (parts and len(parts.parts)) == count


def product(weights, target, rows, columns, limbs, codes, x, offsets=None):
    """The program's configuration and arguments for codes [k, n] and x [m, k], groups of 64."""
    config = GroupAffineConfig(weights, target, 64, rows, columns, offsets=offsets is not None)
    parts, factors = split_in_limbs(torch.from_numpy(x), 64, limbs, rows)
    (k, n), m = codes.shape, len(x)
    scales = np.random.default_rng(1).standard_normal((k // 64, n)).astype(np.float32)
    arguments = {
        "m": m, "n": n, "k": k, "x": parts.view(torch.int32).numpy(), "factors": factors.numpy(),
        "packed": pack(torch.from_numpy(codes), weights, target).numpy(), "scales": scales,
        "y": np.full((m, n), 7, np.float32),
    }  # fmt: skip
    if offsets is not None:
        sums = np.ascontiguousarray(x.reshape(m, -1, 64).sum(-1))
        arguments |= {"offsets": offsets, "sums": sums}
    return config, arguments


@on_each_isa("avx512vnni")
@pytest.mark.parametrize("weights", BYTES, ids=str)
def test_every_code_of_every_type(isa, target, weights):
    """Whole sums below 2^24 are the same in floats: no difference from the interpreter is allowed."""
    rng = np.random.default_rng(0)
    n = 2 * target.group + 3
    codes = rng.permutation(np.arange(64 * n) % (1 << weights.bits)).reshape(64, n)
    x = rng.integers(-127, 128, (2, 64)).astype(np.float32)
    config, arguments = product(weights, target, 1, 2, 1, codes, x)
    got, expected = both(group_limbs(config, 1), target, isa, arguments)
    assert np.array_equal(got["y"], expected["y"])
    exact = (x @ weights.decode(codes).astype(np.float64)) * arguments["scales"]
    assert np.abs(got["y"] - exact).max() <= 1e-6 * np.abs(exact).max()


@on_each_isa()
@pytest.mark.parametrize(
    ("name", "rows", "columns", "limbs"), [("u3", 2, 1, 2), ("i6", 1, 2, 3), ("f6e3m2", 4, 1, 2)]
)
def test_ragged_shapes_on_each_instruction_set(isa, target, name, rows, columns, limbs):
    """Those without products of bytes run the same program with floats."""
    rng = np.random.default_rng(0)
    weights, n = data_type(name), 2 * target.group + 3
    codes = rng.integers(0, 1 << weights.bits, (192, n))
    x = rng.standard_normal((5, 192)).astype(np.float32)
    offsets = rng.standard_normal((3, n)).astype(np.float32)
    config, arguments = product(weights, target, rows, columns, limbs, codes, x, offsets)
    values = weights.decode(codes).reshape(3, 64, n) * arguments["scales"][:, None] + offsets[:, None]
    expected = x.astype(np.float64) @ values.reshape(-1, n)
    most = np.abs(x).reshape(5, 3, 64).max(-1)
    by_group = np.abs(weights.decode(codes).reshape(3, 64, n) * arguments["scales"][:, None]).sum(1)
    bound = most @ by_group / LARGEST[limbs] + 1e-6 * np.abs(expected).max()  # half a unit for each input
    for given_back in both(group_limbs(config, limbs), target, isa, arguments):
        assert (np.abs(given_back["y"] - expected) <= bound).all()


def test_without_the_instruction_there_are_floats():
    config = GroupAffineConfig(data_type("u4"), AVX512, 64, 1, 2, offsets=False)
    prepared = prepare(group_limbs(config, 2), AVX512)
    assert "vi_dot_bytes(t_" in render(prepared, ISAS["avx512vnni"]).text
    assert "vi_dot_bytes(t_" not in render(prepared, ISAS["avx512"]).text
