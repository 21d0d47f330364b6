"""Three ways through the planes give the sums of the definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.errors import NoCompiler
from shoestring.kernels import dual_binary as kernels
from shoestring.kernels.dual_binary import (
    Method,
    PlaneWeights,
    bitwise_linear,
    dual_binary_linear,
    naive_dual_binary_linear,
)
from shoestring.notices import record_fallbacks
from shoestring.numbers.dual_binary import pack_planes
from shoestring.yardstick.flops import CostCounter


def weights_of(rows, groups, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    planes = tuple(torch.rand(rows, groups * size, generator=generator) < share for share in (0.3, 0.5))
    levels = torch.randn(rows, groups, 2, generator=generator).half()
    return PlaneWeights(*pack_planes(planes), levels, groups * size, size)


SHAPES = {
    "rows": st.integers(1, 11), "groups": st.integers(1, 5), "tokens": st.integers(1, 9),
    "seed": st.integers(0, 99),
}  # fmt: skip


@given(size=st.sampled_from([64, 128, 192]), method=st.sampled_from([Method.LOOKUP, Method.MASKED]), **SHAPES)
def test_floats(size, method, rows, groups, tokens, seed):
    weights = weights_of(rows, groups, size, seed)
    x = torch.randn(tokens, groups * size, generator=torch.Generator().manual_seed(seed + 1))
    exact = x.double() @ weights.dequantise().double().T
    bound = 1e-5 * (x.abs().double() @ weights.dequantise().abs().double().T).clamp(min=1e-6)
    for y in (dual_binary_linear(x, weights, method), naive_dual_binary_linear(x, weights)):
        assert ((y - exact).abs() <= bound).all()


@given(size=st.sampled_from([8, 24, 40, 72]), **SHAPES)
def test_masks_take_groups_of_any_whole_eights(size, rows, groups, tokens, seed):
    weights = weights_of(rows, groups, size, seed)
    x = torch.randn(tokens, groups * size, generator=torch.Generator().manual_seed(seed + 1))
    y = dual_binary_linear(x, weights, Method.MASKED)
    torch.testing.assert_close(y, naive_dual_binary_linear(x, weights), rtol=1e-4, atol=1e-4)


@given(size=st.sampled_from([64, 128]), **SHAPES)
def test_bits_alone_are_exact_for_integers(size, rows, groups, tokens, seed):
    """Levels and scales of powers of two: every product and sum is a float32 exactly."""
    weights = weights_of(rows, groups, size, seed)
    powers = 2.0 ** torch.randint(-3, 3, weights.levels.shape, generator=torch.Generator().manual_seed(seed))
    weights = PlaneWeights(weights.first, weights.second, powers.half(), weights.cols, size)
    codes = torch.randint(-128, 128, (tokens, groups * size), generator=torch.Generator().manual_seed(seed))
    scales = torch.full((tokens,), 0.25)
    exact = 0.25 * (codes.double() @ weights.dequantise().double().T)
    assert torch.equal(bitwise_linear(codes.to(torch.int8), scales, weights), exact.float())


def test_bits_alone_stay_within_the_rounding_of_the_inputs():
    weights = weights_of(33, 3, 64)
    x = torch.randn(5, 192, generator=torch.Generator().manual_seed(3))
    y = dual_binary_linear(x, weights, Method.BITWISE)
    step = x.abs().amax(1, keepdim=True) / 127
    bound = step / 2 * weights.dequantise().abs().sum(1) + 1e-4
    assert ((y - naive_dual_binary_linear(x, weights)).abs() <= bound).all()


@pytest.mark.parametrize("method", list(Method))
def test_threads_and_batches_change_no_bit(method):
    weights = weights_of(130, 9, 64)
    x = torch.randn(7, 576, generator=torch.Generator().manual_seed(3))
    one = dual_binary_linear(x, weights, method)
    torch.set_num_threads(2)
    try:
        assert torch.equal(dual_binary_linear(x, weights, method), one)
    finally:
        torch.set_num_threads(1)
    rows = torch.cat([dual_binary_linear(row[None], weights, method) for row in x])
    assert torch.equal(rows, one)
    assert dual_binary_linear(x.bfloat16().reshape(7, 1, 576), weights, method).shape == (7, 1, 130)
    assert dual_binary_linear(x.bfloat16(), weights, method).dtype == torch.bfloat16


def test_without_a_compiler_torch_answers(monkeypatch):
    def missing():
        raise NoCompiler("none here")

    monkeypatch.setattr(kernels, "_library", missing)
    weights = weights_of(5, 2, 64)
    x = torch.randn(2, 128)
    with record_fallbacks() as notices:
        y = dual_binary_linear(x, weights)
    assert torch.equal(y, naive_dual_binary_linear(x, weights))
    assert any("none here" in str(notice) for notice in notices)


def test_cost_counts_the_set_bits():
    weights = weights_of(16, 2, 64)
    x = torch.randn(3, 128)
    with CostCounter() as counter:
        dual_binary_linear(x, weights)
    bits = sum(int(plane.sum()) for plane in weights.planes())
    assert weights.set_bits() == bits
    assert counter.flops == 3 * (bits + 4 * 16 * 2)
    assert counter.bytes == weights.nbytes + x.nbytes + 3 * 16 * 4


def test_bad_input():
    weights = weights_of(4, 2, 24)
    with pytest.raises(ValueError, match="group_size=24 of 48 inputs: lookup takes whole groups of .* 64"):
        dual_binary_linear(torch.randn(1, 48), weights)
    with pytest.raises(ValueError, match="x has 40 inputs, the weights 48"):
        dual_binary_linear(torch.randn(1, 40), weights, Method.MASKED)
    with pytest.raises(TypeError, match="int8 inputs and their scales, not torch.float32"):
        bitwise_linear(torch.randn(1, 128), torch.ones(1), weights_of(4, 2, 64))
