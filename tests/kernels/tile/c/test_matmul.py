"""The matrix product programs in C against NumPy and the interpreter, on every instruction set."""

import numpy as np
import pytest
import torch
from tests.kernels.tile.c.programs import both, on_each_isa

from shoestring.kernels.tile.group_quantise import dequantise_groups, quantise_groups
from shoestring.kernels.tile.programs.gemv import gemv, gemv_tile
from shoestring.kernels.tile.programs.group_affine import (
    GroupAffineConfig,
    group_affine,
    pack,
    rows_in_blocks,
)
from shoestring.kernels.tile.programs.matmul import MatmulConfig, pipelined_matmul, streaming_matmul
from shoestring.kernels.tile.types import data_type

STORED = {32: np.float32, 16: np.uint16}


def stored(kind, codes):
    return codes.astype(np.uint32).view(np.float32) if kind.bits == 32 else codes.astype(np.uint16)


def check(make, config, isa, m, n, k, tolerance):
    rng = np.random.default_rng(m)
    kind = config.activations
    codes, scales = quantise_groups(
        rng.standard_normal((k, n)).astype(np.float32), config.weights, config.group_size, kind
    )
    a = kind.encode(rng.standard_normal((m, k)).astype(np.float32))
    arguments = {
        "m": m, "n": n, "k": k, "a": stored(kind, a), "packed": config.pack_weights(codes),
        "scales": stored(kind, scales), "c": np.zeros((m, n), STORED[kind.bits]),
        "semaphores": np.zeros(config.semaphores(m, n), np.int32),
    }  # fmt: skip
    results = both(make(config), config.target, isa, arguments)
    weights = dequantise_groups(codes, scales, config.weights, config.group_size, kind)
    expected = kind.decode(a) @ weights
    for given in results:
        assert not given["semaphores"].any()
        c = given["c"] if kind.bits == 32 else kind.decode(given["c"].astype(np.uint32))
        assert np.abs(c - expected).max() <= tolerance * np.abs(expected).max()


@on_each_isa()
@pytest.mark.parametrize("weights", ["i3", "f6e3m2"])
def test_streaming_on_ragged_shapes(isa, target, weights):
    """One program for all heights: blocks of two rows, of which the last hangs over."""
    config = MatmulConfig(data_type(weights), data_type("f32"), target, 64, repeats=(2, 1, 1))
    for m in (1, 3, 8, 17):
        check(streaming_matmul, config, isa, m, 21, 83, 1e-5)


@on_each_isa("avx512", "avx2")
def test_blocks_that_share_k_and_shared_memory(isa, target):
    single, half = data_type("f32"), data_type("bf16")
    split = MatmulConfig(data_type("i5"), single, target, 32, split_k=3)
    check(streaming_matmul, split, isa, 2, 40, 200, 1e-5)
    staged = MatmulConfig(data_type("f4e2m1"), half, target, 32, stages=3)
    check(pipelined_matmul, staged, isa, 3, 21, 83, 2e-2)


@on_each_isa("avx512", "portable")
def test_lanes_along_k(isa, target):
    rng = np.random.default_rng(0)
    dtype, single = data_type("i4"), data_type("f32")
    group = 32 * target.group
    tile = gemv_tile(dtype, target, group)
    n, k = 12, 2 * group
    codes, scales = quantise_groups(rng.standard_normal((k, n)).astype(np.float32), dtype, group, single)
    arguments = {
        "n": n, "k": k, "x": rng.standard_normal(k).astype(np.float32), "y": np.zeros(n, np.float32),
        "packed": np.ascontiguousarray(tile.pack(codes.T.astype(np.uint8))),
        "scales": np.ascontiguousarray(single.decode(scales).T),
    }  # fmt: skip
    expected = arguments["x"] @ dequantise_groups(codes, scales, dtype, group, single)
    for given in both(gemv(tile), target, isa, arguments):
        assert np.abs(given["y"] - expected).max() <= 1e-5 * np.abs(expected).max()


@on_each_isa()
@pytest.mark.parametrize(("weights", "rows", "columns"), [("u3", 2, 1), ("i6", 1, 2), ("f7e3m3", 4, 1)])
def test_scaled_groups_on_ragged_shapes(isa, target, weights, rows, columns):
    """Blocks hang over at the last row and at the last output; x is padded."""
    rng = np.random.default_rng(0)
    config = GroupAffineConfig(data_type(weights), target, 64, rows, columns, offsets=True)
    m, n, groups = 5, 2 * target.group + 3, 3
    codes = rng.integers(0, 1 << config.weights.bits, (groups * 64, n))
    x = rng.standard_normal((m, groups * 64)).astype(np.float32)
    scales, offsets = (rng.standard_normal((groups, n)).astype(np.float32) for _ in range(2))
    arguments = {
        "m": m, "n": n, "k": groups * 64, "x": rows_in_blocks(torch.from_numpy(x), rows).numpy(),
        "scales": scales, "offsets": offsets,
        "packed": pack(torch.from_numpy(codes), config.weights, target).numpy(),
        "sums": np.ascontiguousarray(x.reshape(m, groups, 64).sum(-1)), "y": np.full((m, n), 7, np.float32),
    }  # fmt: skip
    values = config.weights.decode(codes).reshape(groups, 64, n) * scales[:, None] + offsets[:, None]
    expected = x @ values.reshape(-1, n)
    for given in both(group_affine(config), target, isa, arguments):
        assert np.abs(given["y"] - expected).max() <= 1e-5 * np.abs(expected).max()
