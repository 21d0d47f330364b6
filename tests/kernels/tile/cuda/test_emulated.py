"""What generated CUDA text computes, run on the processor, beside the interpreter and NumPy."""

import numpy as np
import pytest
import torch
from tests.kernels.tile.cuda.emulation import emulate, needs_compiler

from shoestring.kernels.tile import interpreter
from shoestring.kernels.tile.builder import Builder
from shoestring.kernels.tile.cuda.renderer import render
from shoestring.kernels.tile.group_quantise import dequantise_groups, quantise_groups
from shoestring.kernels.tile.layout import local, replicate, spatial
from shoestring.kernels.tile.prepare import prepare
from shoestring.kernels.tile.programs.group_affine import (
    GroupAffineConfig,
    group_affine,
    pack,
    rows_in_blocks,
)
from shoestring.kernels.tile.programs.matmul import MatmulConfig, pipelined_matmul
from shoestring.kernels.tile.target import CUDA
from shoestring.kernels.tile.types import all_narrow_types, data_type
from shoestring.numbers.packing import pack_bits

pytestmark = needs_compiler
RUN = 32


def aligned(array):
    """A copy that starts at a multiple of 16 bytes."""
    room = np.zeros(array.nbytes + 16, np.uint8)
    start = -room.ctypes.data % 16
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def both(program, arguments):
    """The buffers after the emulated kernel and after the interpreter."""
    prepared = prepare(program, CUDA)
    results = []
    for run in (
        lambda g: emulate(render(prepared), g),
        lambda g: interpreter.run(prepared.program, g, seed=1),
    ):
        given = {n: aligned(x) if isinstance(x, np.ndarray) else x for n, x in arguments.items()}
        run(given)
        results.append(given)
    return results


@pytest.mark.parametrize("wide", ["f16", "bf16", "f32"])
def test_every_code_of_every_type_decodes_exactly(wide):
    """The exponent trick, moved fields and tables, across word boundaries, to each wide type."""
    size, kind = RUN * 32, data_type(wide)
    b = Builder("decode_all", threads=32)
    b.grid(1)
    b.block_indices()
    arguments = {}
    for dtype in all_narrow_types():
        source = b.view_global(b.pointer(f"codes_{dtype}", dtype), [size])
        tile = b.load_global(source, [0], shape=[size], layout=local(RUN) * spatial(32))
        y = b.view_global(b.pointer(f"y_{dtype}", kind), [size])
        b.store_global(y, b.cast(tile, kind), [0])
        codes = np.arange(size) % (1 << dtype.bits)
        arguments[f"codes_{dtype}"] = pack_bits(codes.astype(np.int32), dtype.bits)
        arguments[f"y_{dtype}"] = np.zeros(size, np.float32 if kind.bits == 32 else np.uint16)
    got, expected = both(b.build(), arguments)
    for dtype in all_narrow_types():
        mine = kind.decode(got[f"y_{dtype}"].view(f"u{kind.bits // 8}"))
        theirs = kind.decode(expected[f"y_{dtype}"].view(f"u{kind.bits // 8}"))
        assert np.array_equal(mine, theirs, equal_nan=True), dtype
        values = kind.decode(
            kind.encode(dtype.values[np.arange(size) % (1 << dtype.bits)].astype(np.float32))
        )
        assert np.array_equal(mine, values, equal_nan=True), dtype


CONFIGS = [
    # ragged, one element at a time; two warps; many stages; both halves of the tensor core types
    ("i4", "f16", {"warps": (1, 2)}, (3, 21, 83)),
    ("u3", "f16", {"warps": (1, 2), "repeats": (1, 2, 2), "aligned": 16}, (5, 80, 144)),
    ("i5", "bf16", {"warps": (2, 1), "stages": 2, "aligned": 8}, (17, 24, 72)),
    ("f6e3m2", "f16", {"split_k": 3, "stages": 4, "aligned": 4}, (2, 20, 100)),
    ("i7", "bf16", {"warps": (2, 2), "repeats": (1, 1, 4), "aligned": 64}, (40, 64, 192)),
    ("e4m3fn", "f16", {"repeats": (2, 1, 1)}, (33, 16, 32)),
    ("u1", "f16", {"warps": (1, 4), "repeats": (1, 1, 2), "aligned": 32}, (1, 96, 96)),
    ("u8", "f16", {"aligned": 2}, (16, 18, 34)),
]


@pytest.mark.parametrize(("weights", "activations", "tiling", "shape"), CONFIGS)
def test_the_matmul_template(weights, activations, tiling, shape):
    kind, (m, n, k) = data_type(activations), shape
    config = MatmulConfig(data_type(weights), kind, CUDA, 64, **tiling)
    rng = np.random.default_rng(0)
    if config.weights.is_unsigned:
        codes = rng.integers(0, 1 << config.weights.bits, (k, n)).astype(np.uint32)
        scales = kind.encode(rng.uniform(0.01, 0.1, (-(-k // 64), n)).astype(np.float32))
    else:
        codes, scales = quantise_groups(
            rng.standard_normal((k, n)).astype(np.float32), config.weights, 64, kind
        )
    a = kind.encode(rng.standard_normal((m, k)).astype(np.float32)).astype(np.uint16)
    arguments = {
        "m": m, "n": n, "k": k, "a": a, "packed": config.pack_weights(codes),
        "scales": scales.astype(np.uint16), "c": np.full((m, n), 0x7E00, np.uint16),
        "semaphores": np.zeros(config.semaphores(m, n), np.int32),
    }  # fmt: skip
    expected = kind.decode(a) @ dequantise_groups(codes, scales, config.weights, 64, kind)
    for given in both(pipelined_matmul(config), arguments):
        assert not given["semaphores"].any()
        error = np.abs(kind.decode(given["c"]) - expected).max() / np.abs(expected).max()
        assert error <= (2e-2 if activations == "bf16" else 3e-3)


@pytest.mark.parametrize("shape", [(1, 32, 64), (3, 40, 128)])
def test_the_product_with_offsets_for_each_group(shape):
    """4-bit codes with scale and zero point: Σ over groups of s · (Σ q x) + c · (Σ x)."""
    m, n, k = shape
    config = GroupAffineConfig(data_type("u4"), CUDA, 64, 2, 1, True)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (k, n)).astype(np.int32)
    scales = rng.uniform(0.01, 0.1, (k // 64, n)).astype(np.float32)
    offsets = (-scales * rng.integers(0, 16, scales.shape)).astype(np.float32)
    x = rng.standard_normal((m, k)).astype(np.float32)
    arguments = {
        "m": m, "n": n, "k": k, "x": rows_in_blocks(torch.from_numpy(x), 2).numpy(),
        "packed": pack(torch.from_numpy(codes), config.weights, CUDA).numpy(),
        "scales": scales, "offsets": offsets, "sums": x.reshape(m, -1, 64).sum(-1),
        "y": np.full((m, n), np.nan, np.float32),
    }  # fmt: skip
    weight = np.repeat(scales, 64, 0) * codes + np.repeat(offsets, 64, 0)
    for given in both(group_affine(config), arguments):
        np.testing.assert_allclose(given["y"], x @ weight, rtol=1e-4, atol=1e-4)


def test_arithmetic_of_each_wide_type_and_edges():
    """Loads and stores masked at an edge, pairs and single values, plain multiply-adds, replicas."""
    b = Builder("mixed", threads=64)
    n = b.scalar("n")
    b.grid(2)
    (block,) = b.block_indices()
    lanes = local(2, 3) * spatial(8, 8)
    x = b.view_global(b.pointer("x", "f32"), [n, 24])
    tile = b.load_global(x, [block * 16, 1], shape=[16, 24], layout=lanes)
    for kind in ("f16", "bf16", "f32"):
        part = b.cast(tile, kind)
        part = b.sub(b.mul(part, part), b.unary("tanh", b.add(part, 0.5)))
        y = b.view_global(b.pointer(f"y_{kind}", kind), [n, 24])
        b.store_global(y, b.elementwise("max", part, b.unary("neg", part)), [block * 16, 1])
    whole = b.mul(b.cast(b.mul(tile, 100.0), "i32"), block + 3)
    b.store_global(b.view_global(b.pointer("y_i32", "i32"), [n, 24]), whole, [block * 16, 1])
    left = b.load_global(x, [block * 16, 2], shape=[16, 4], layout=local(2, 4) * spatial(8, 1) * replicate(8))
    right = b.load_global(x, [0, 0], shape=[4, 24], layout=local(4, 3) * replicate(8) * spatial(1, 8))
    total = b.allocate_register("f32", [16, 24], layout=lanes, init=1.5)
    b.dot(left, right, total, out=total)
    b.store_global(b.view_global(b.pointer("y_dot", "f32"), [n, 24]), total, [block * 16, 0])
    rng = np.random.default_rng(0)
    arguments = {"n": 21, "x": rng.standard_normal((21, 24)).astype(np.float32)}
    for name, stored in (("f16", "u2"), ("bf16", "u2"), ("f32", "f4"), ("i32", "i4"), ("dot", "f4")):
        arguments[f"y_{name}"] = np.zeros((21, 24), stored)
    got, expected = both(b.build(), arguments)
    assert np.array_equal(got["y_i32"], expected["y_i32"])
    assert got["y_i32"][20, 1:].any()
    for name in ("f16", "bf16", "f32", "dot"):
        mine, theirs = got[f"y_{name}"], expected[f"y_{name}"]
        if name in ("f16", "bf16"):
            mine, theirs = (data_type(name).decode(array) for array in (mine, theirs))
        step = {"f16": 2e-3, "bf16": 2e-2}.get(name, 1e-6)
        assert np.abs(mine - theirs).max() <= step * np.abs(theirs).max(), name
