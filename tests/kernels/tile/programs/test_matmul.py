from dataclasses import replace

import numpy as np
import pytest

from shoestring.errors import ProgramError
from shoestring.kernels.tile.group_quantise import dequantise_groups, quantise_groups
from shoestring.kernels.tile.interpreter import run
from shoestring.kernels.tile.prepare import prepare
from shoestring.kernels.tile.programs.gemv import gemv, gemv_tile
from shoestring.kernels.tile.programs.matmul import MatmulConfig, pipelined_matmul, streaming_matmul
from shoestring.kernels.tile.target import AVX2, AVX512, CUDA
from shoestring.kernels.tile.types import data_type

SIGNED = [
    "i2",
    "i3",
    "i4",
    "i5",
    "i6",
    "i7",
    "i8",
    "f3e1m1",
    "f4e2m1",
    "f5e2m2",
    "f6e3m2",
    "f7e3m3",
    "e4m3fn",
]
EACH_WITH_A_HEIGHT = [(name, (1, 3, 8)[i % 3]) for i, name in enumerate([*SIGNED, "u1", "u3"])]


def multiply(make, config, m, n, k, *, seed=0):
    """Result of the program and of NumPy on the dequantised weights."""
    rng = np.random.default_rng(seed)
    kind = config.activations
    stored = np.dtype(f"u{kind.bits // 8}")
    weight = rng.standard_normal((k, n)).astype(np.float32)
    if config.weights.is_unsigned:
        codes = rng.integers(0, 1 << config.weights.bits, (k, n)).astype(np.uint32)
        scales = kind.encode(rng.uniform(0.01, 0.1, (-(-k // config.group_size), n)).astype(np.float32))
    else:
        codes, scales = quantise_groups(weight, config.weights, config.group_size, kind)
    a = kind.encode(rng.standard_normal((m, k)).astype(np.float32))
    c = kind.encode(np.full((m, n), np.nan, np.float32)).astype(stored)
    semaphores = np.zeros(config.semaphores(m, n), np.int32)
    prepared = prepare(make(config), config.target)
    arguments = {
        "m": m, "n": n, "k": k, "a": a.astype(stored), "packed": config.pack_weights(codes),
        "scales": scales.astype(stored), "c": c, "semaphores": semaphores,
    }  # fmt: skip
    run(prepared.program, arguments, seed=seed)
    assert not semaphores.any()
    weights = dequantise_groups(codes, scales, config.weights, config.group_size, kind)
    return kind.decode(c), kind.decode(a) @ weights


def close(got, expected, tolerance):
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("weights", "m"), EACH_WITH_A_HEIGHT)
def test_streaming_equals_numpy_on_ragged_shapes(weights, m):
    target = AVX512 if m != 3 else AVX2
    config = MatmulConfig(data_type(weights), data_type("f32"), target, 64, repeats=(min(m, 4), 1, 2))
    close(*multiply(streaming_matmul, config, m, 21, 83), 1e-5)


@pytest.mark.parametrize(("weights", "m"), EACH_WITH_A_HEIGHT[::2])
def test_pipelined_equals_numpy_on_ragged_shapes(weights, m):
    config = MatmulConfig(data_type(weights), data_type("f16"), CUDA, 32, warps=(1, 2), repeats=(1, 1, 1))
    close(*multiply(pipelined_matmul, config, m, 21, 83), 2e-3)


@pytest.mark.parametrize(
    ("warps", "repeats", "stages"),
    [((2, 1), (1, 2, 2), 2), ((1, 2), (2, 1, 1), 4), ((2, 2), (1, 1, 4), 3)],
)
def test_pipelined_tilings(warps, repeats, stages):
    config = MatmulConfig(
        data_type("i4"), data_type("bf16"), CUDA, 64, warps=warps, repeats=repeats, stages=stages, aligned=8
    )
    close(*multiply(pipelined_matmul, config, 40, 40, 136), 2e-2)


@pytest.mark.parametrize(("split_k", "seed"), [(2, 1), (5, 2)])
def test_blocks_that_share_k_add_up_in_any_order(split_k, seed):
    streaming = MatmulConfig(data_type("i5"), data_type("f32"), AVX2, 32, split_k=split_k)
    close(*multiply(streaming_matmul, streaming, 2, 10, 100, seed=seed), 1e-5)
    pipelined = MatmulConfig(data_type("f6e3m2"), data_type("f16"), CUDA, 32, split_k=split_k)
    close(*multiply(pipelined_matmul, pipelined, 2, 20, 100, seed=seed), 5e-3)


@pytest.mark.parametrize("weights", ["i4", "f6e3m2", "i7"])
@pytest.mark.parametrize("target", [AVX512, AVX2], ids=str)
def test_gemv_equals_numpy(weights, target):
    rng = np.random.default_rng(0)
    dtype, single = data_type(weights), data_type("f32")
    group = 32 * target.group
    tile = gemv_tile(dtype, target, group)
    n, k = 12, 2 * group
    codes, scales = quantise_groups(rng.standard_normal((k, n)).astype(np.float32), dtype, group, single)
    x, y = rng.standard_normal(k).astype(np.float32), np.full(n, np.nan, np.float32)
    program = prepare(gemv(tile), target).program
    packed = np.ascontiguousarray(tile.pack(codes.T.astype(np.uint8)))
    stored = np.ascontiguousarray(single.decode(scales).T)
    run(program, {"n": n, "k": k, "x": x, "packed": packed, "scales": stored, "y": y}, seed=3)
    close(y, x @ dequantise_groups(codes, scales, dtype, group, single), 1e-5)


def test_bad_configurations():
    make = {"weights": data_type("i4"), "activations": data_type("f16"), "target": CUDA}
    with pytest.raises(ProgramError, match="group_size=24 is not whole tiles of 16 rows"):
        MatmulConfig(**make, group_size=24)
    with pytest.raises(ProgramError, match="counts are at least 1"):
        MatmulConfig(**make, group_size=32, split_k=0)
    with pytest.raises(ProgramError, match="stages at least 2"):
        MatmulConfig(**make, group_size=32, stages=1)
    small = replace(CUDA, shared_bytes=1000)
    with pytest.raises(
        ProgramError, match="needs 2048 bytes of shared memory at once, cuda gives a block 1000"
    ):
        prepare(pipelined_matmul(MatmulConfig(**make, group_size=16)), small)
