"""Grouped affine storage: exact bytes, exact round trips, an independent reader of bits, good fits."""

import itertools

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers.affine_fit import (
    fit_least_squares,
    fit_min_max,
    naive_fit_min_max,
    weighted_errors,
)
from shoestring.numbers.grouped_affine import GroupedAffine, ZeroPoint, naive_dequantise

forms = st.builds(
    GroupedAffine,
    bits=st.integers(2, 8),
    group_size=st.sampled_from([1, 2, 3, 7, 16, 32]),
    zero_point=st.sampled_from(list(ZeroPoint)),
    scale_bits=st.sampled_from([6, 8, 16, 32]),
)


def matrix(form: GroupedAffine, rows: int, groups: int, seed: int, spread: float = 0.02) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, groups * form.group_size, generator=generator) * spread


@given(form=forms, rows=st.integers(1, 5), groups=st.integers(1, 4), seed=st.integers(0, 99))
def test_stored_tensors_are_as_announced_and_read_back_exactly(form, rows, groups, seed):
    weight = matrix(form, rows, groups, seed)
    grid = fit_min_max(form, weight)
    codes = form.encode(weight, grid)
    stored = form.store(codes, grid)
    assert {k: (tuple(v.shape), v.dtype) for k, v in stored.items()} == form.tensors(*weight.shape)
    assert sum(v.nbytes for v in stored.values()) == form.nbytes(*weight.shape)
    read = form.grid(stored, weight.shape[1])
    for part in ("scale", "zero", "offset"):
        assert torch.equal(getattr(read, part), getattr(grid, part))
    assert torch.equal(form.dequantise(stored, weight.shape[1]), form.decode(codes, grid))
    assert torch.equal(form.nearest(weight, grid), form.decode(codes, grid))


@given(form=forms, rows=st.integers(1, 3), groups=st.integers(1, 3), seed=st.integers(0, 99))
def test_dequantise_equals_the_reader_of_single_bits(form, rows, groups, seed):
    weight = matrix(form, rows, groups, seed)
    grid = fit_least_squares(form, weight)
    stored = form.store(form.encode(weight, grid), grid)
    naive = naive_dequantise(form, stored, weight.shape[1])
    fast = form.dequantise(stored, weight.shape[1])
    # With float16 scales the product is exact in float32; code scales round once more.
    torch.testing.assert_close(fast, naive, rtol=0 if form.scale_bits == 16 else 1e-6, atol=1e-8)


@given(form=forms, seed=st.integers(0, 99))
def test_encoding_picks_the_nearest_level(form, seed):
    weight = matrix(form, 2, 2, seed)
    grid = fit_min_max(form, weight)
    error = (form.decode(form.encode(weight, grid), grid) - weight).abs()
    every = torch.stack(
        [
            form.decode(torch.full(weight.shape, level, dtype=torch.uint8), grid)
            for level in range(form.levels)
        ]
    )
    nearest = (every - weight).abs().amin(0)
    torch.testing.assert_close(error, nearest, rtol=1e-3, atol=1e-6)


@given(form=forms, seed=st.integers(0, 99))
def test_min_max_equals_its_naive_form_and_clips_nothing_much(form, seed):
    weight = matrix(form, 3, 2, seed)
    fast, naive = fit_min_max(form, weight), naive_fit_min_max(form, weight)
    torch.testing.assert_close(fast.scale, naive.scale, rtol=2e-3, atol=1e-7)
    if form.scale_bits >= 16:
        error = (form.decode(form.encode(weight, fast), fast) - weight).abs()
        # An integer zero may shift the range by half a step; float16 may shorten it by 2^-11.
        assert (error <= fast.scale.repeat_interleave(form.group_size, 1) * 1.01 + 1e-5).all()


@given(form=forms, seed=st.integers(0, 99), weighted=st.booleans())
def test_least_squares_is_never_worse_than_min_max(form, seed, weighted):
    weight = matrix(form, 3, 3, seed)
    importance = None
    if weighted:
        importance = torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(seed)) ** 4
    best = weighted_errors(form, weight, fit_least_squares(form, weight, importance), importance)
    plain = weighted_errors(form, weight, fit_min_max(form, weight), importance)
    if form.scale_bits >= 16:
        assert (best <= plain + 1e-12).all()
    assert best.sum() <= plain.sum() + 1e-10


@pytest.mark.parametrize("zero_point", [ZeroPoint.SYMMETRIC, ZeroPoint.REAL])
def test_least_squares_comes_close_to_the_optimum_of_all_codes(zero_point):
    """Oracle: for six weights and two bits, every assignment of codes with its closed-form best grid."""
    form = GroupedAffine(2, 6, zero_point)
    generator = torch.Generator().manual_seed(3)
    found = optimum = 0.0
    codes = np.array(list(itertools.product(range(4), repeat=6)), dtype=np.float64)
    for _ in range(60):
        weight = torch.randn(1, 6, generator=generator)
        w = weight.double().numpy()[0]
        if zero_point is ZeroPoint.REAL:
            c, d = codes - codes.mean(1, keepdims=True), w - w.mean()
        else:
            c, d = codes - 2, w
        square = (c * c).sum(1)
        gain = np.divide((c @ d) ** 2, square, out=np.zeros_like(square), where=square > 0)
        optimum += (d * d).sum() - gain.max()
        found += weighted_errors(form, weight, fit_least_squares(form, weight)).sum().item()
    assert optimum <= found <= 1.15 * optimum


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("Q4_0", GroupedAffine(4, 32)),
        ("Q5_0", GroupedAffine(5, 32)),
        ("Q8_0", GroupedAffine(8, 32)),
        ("Q4_1", GroupedAffine(4, 32, ZeroPoint.REAL)),
        ("Q5_1", GroupedAffine(5, 32, ZeroPoint.REAL)),
    ],
)
def test_gguf_blocks_are_represented_exactly(kind, form):
    """What the gguf package decodes is on our grid: encoding it on the scale it used loses nothing."""
    weight = np.random.default_rng(0).normal(size=(4, 96)).astype(np.float32)
    blocks = gguf.quants.quantize(weight, gguf.GGMLQuantizationType[kind])
    theirs = torch.from_numpy(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind]).copy())
    raw = torch.from_numpy(blocks.reshape(4, 3, -1).copy())
    scale = raw[..., 0:2].contiguous().view(torch.float16)[..., 0].float()
    shift = raw[..., 2:4].contiguous().view(torch.float16)[..., 0].float()
    grid = form.represent(scale, shift)
    ours = form.decode(form.encode(theirs, grid), grid)
    assert torch.equal(ours, theirs)


def test_a_constant_group_and_a_zero_matrix_survive():
    for zero_point in ZeroPoint:
        for scale_bits in (6, 8, 16, 32):
            form = GroupedAffine(4, 4, zero_point, scale_bits)
            nothing = torch.zeros(2, 8)
            grid = fit_least_squares(form, nothing)
            assert torch.equal(form.decode(form.encode(nothing, grid), grid), nothing)
            constant = torch.full((2, 8), 0.25)
            grid = fit_least_squares(form, constant)
            torch.testing.assert_close(
                form.decode(form.encode(constant, grid), grid), constant, rtol=0.02, atol=0
            )


def test_weighted_fit_comes_close_to_a_dense_search_of_the_scale():
    """Oracle: with one unknown per group, 401 scales of either sign tried one by one."""
    form = GroupedAffine(2, 32)
    weight = matrix(form, 64, 2, seed=5)
    importance = torch.full((64,), 1e-3)
    importance[::4] = 1.0
    reach = weight.reshape(64, 2, 32).abs().amax(-1)
    dense = torch.full((64, 2), float("inf"))
    for factor in torch.linspace(-1.5, 1.5, 401):
        dense = dense.minimum(
            weighted_errors(form, weight, form.represent(reach * factor, reach), importance)
        )
    loss, unweighted = (
        weighted_errors(form, weight, fit_least_squares(form, weight, known), importance).sum()
        for known in (importance, None)
    )
    assert loss <= 1.02 * dense.sum()
    assert loss < unweighted


def test_bytes_of_a_known_matrix():
    # 576 columns in groups of 32: 18 groups; 4-bit codes 288 B, float16 scales 36 B a row.
    assert GroupedAffine(4, 32).nbytes(10, 576) == 10 * (288 + 36)
    # 3-bit codes 216 B; 6-bit scale codes 14 B (13.5 rounded up), a multiplier 2 B; 3-bit zeros 7 B.
    assert GroupedAffine(3, 32, ZeroPoint.INTEGER, 6).nbytes(10, 576) == 10 * (216 + 14 + 2 + 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 9}, "bits=9 is not a width of a code; use 2 to 8"),
        ({"bits": 1}, "use 2 to 8"),
        ({"group_size": 0}, "group_size=0 is not a number of columns"),
        ({"scale_bits": 7}, "scale_bits=7 is not a width of a scale; use 32, 16, 8 or 6"),
    ],
)
def test_formats_that_do_not_exist(arguments, message):
    with pytest.raises(ValueError, match=message):
        GroupedAffine(**arguments)


def test_a_group_that_does_not_divide_names_the_layer_and_the_nearest_sizes():
    with pytest.raises(ValueError) as caught:
        GroupedAffine(4, 100).groups(1536, "model.layers.0.mlp.down_proj")
    assert str(caught.value) == (
        "'model.layers.0.mlp.down_proj' has 1536 input features, "
        "which group_size=100 does not divide; use 96 or 128."
    )


def test_bad_weights_are_named():
    weight = torch.zeros(2, 32)
    weight[1, 3] = float("nan")
    for fit in (fit_min_max, fit_least_squares):
        with pytest.raises(ValueError, match="'a.b' holds NaN or infinite weights"):
            fit(GroupedAffine(), weight, name="a.b")
    with pytest.raises(ValueError, match="beyond ±65504"):
        fit_min_max(GroupedAffine(8, 32, ZeroPoint.REAL), torch.full((1, 32), 1e30))


def test_numbers_are_the_same_on_every_run_and_thread_count():
    form = GroupedAffine(3, 32, ZeroPoint.REAL)
    weight = matrix(form, 40, 6, seed=1)
    threads = torch.get_num_threads()
    grids = []
    for count in (1, 2):
        torch.set_num_threads(count)
        grids.append(fit_least_squares(form, weight))
    torch.set_num_threads(threads)
    assert torch.equal(grids[0].scale, grids[1].scale)
    assert torch.equal(grids[0].offset, grids[1].offset)
