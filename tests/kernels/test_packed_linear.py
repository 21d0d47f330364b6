"""Products with packed weights against torch on the dequantised ones."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.kernels import packed_linear as module
from shoestring.kernels.costs import Cost, listen
from shoestring.kernels.packed_linear import PackedWeights, naive_packed_linear, packed_linear
from shoestring.notices import record_fallbacks

# every width, integers of both kinds and floats with and without special codes
CASES = [
    ("u1", 1, 32, True), ("i2", 3, 32, False), ("u3", 8, 48, True), ("f4e2m1", 17, 20, False),
    ("i5", 1, 64, True), ("f6e3m2", 3, 96, False), ("u7", 8, 32, True), ("e4m3fn", 17, 64, False),
    ("i8", 16, 32, True),
]  # fmt: skip


def operands(name, rows, group, offsets, outputs=37, groups=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    kind = module.data_type(name)
    codes = torch.randint(0, 1 << kind.bits, (outputs, groups * group), generator=generator)
    values = torch.from_numpy(kind.decode(codes.numpy())).float()
    codes[~values.isfinite()] = 0
    weights = PackedWeights.pack(codes, kind, group)
    assert torch.equal(weights.codes().to(codes.dtype), codes)
    scales = torch.rand(outputs, groups, generator=generator) + 0.1
    shift = torch.randn(outputs, groups, generator=generator) if offsets else None
    return torch.randn(rows, groups * group, generator=generator), weights, scales, shift


@pytest.mark.parametrize(("name", "rows", "group", "offsets"), CASES)
def test_equals_torch_on_the_dequantised_matrix(name, rows, group, offsets):
    x, weights, scales, shift = operands(name, rows, group, offsets)
    values = torch.from_numpy(weights.dtype.decode(weights.codes().numpy())).double()
    matrix = values * scales.repeat_interleave(group, 1)
    if shift is not None:
        matrix = matrix + shift.repeat_interleave(group, 1)
    expected = x.double() @ matrix.T
    with record_fallbacks() as said:
        got = packed_linear(x, weights, scales, shift)
    assert not said, "the compiled kernel answers"
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    plain = naive_packed_linear(x, weights, scales, shift)
    assert (plain - expected).abs().max() <= 1e-5 * expected.abs().max()


@settings(max_examples=30)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), rows=st.sampled_from([1, 17]),
    outputs=st.sampled_from([1, 16, 67]), transposed=st.booleans(), group=st.sampled_from([20, 32]),
)  # fmt: skip
def test_every_type_of_x_and_both_ways_of_scales(dtype, rows, outputs, transposed, group):
    """x is read from rows that are no neighbours."""
    x, weights, scales, shift = operands("u3", rows, group, True, outputs=outputs, seed=rows)
    x = x.to(dtype)
    wide = torch.cat([x, x], 1)[:, : x.shape[1]]
    got = packed_linear(wide, weights, scales.T.contiguous().T if transposed else scales, shift)
    assert got.dtype == dtype
    matrix = naive_packed_linear(torch.eye(weights.inputs), weights, scales, shift).double()
    expected = x.double() @ matrix
    rounding = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    most = x.double().abs() @ matrix.abs()
    assert ((got.double() - expected).abs() <= rounding * expected.abs() + 1e-4 * most.max()).all()


def test_results_of_halves_are_floats_rounded_to_even():
    """Of each output one input counts, so that its scale is the result: ties, NaN and overflow among them."""
    weights = PackedWeights.pack(torch.eye(96, dtype=torch.int32), "u3", 32)
    ties = (torch.arange(96).int() * 0x8000 + 0x3F808000).view(torch.float32)
    ties[:3] = torch.tensor([torch.nan, 3.4e38, -3.4e38])
    scales = ties[:, None].expand(96, 3).contiguous()
    got = packed_linear(torch.ones(1, 96).bfloat16(), weights, scales)
    assert got.isnan().tolist() == [[True] + [False] * 95]
    assert torch.equal(got[0, 1:], ties[1:].bfloat16())


def test_the_number_of_threads_changes_nothing_and_batches_and_types_are_kept():
    x, weights, scales, shift = operands("i5", 1, 64, True, outputs=200)
    one = packed_linear(x, weights, scales, shift)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(packed_linear(x, weights, scales, shift), one)
    finally:
        torch.set_num_threads(before)
    brain = packed_linear(x.bfloat16().reshape(1, 1, -1), weights, scales.T.contiguous().T, shift)
    assert brain.shape == (1, 1, 200)
    assert brain.dtype == torch.bfloat16
    torch.testing.assert_close(brain[0].float(), one, rtol=2e-2, atol=2e-2 * one.abs().max().item())


def test_the_cost_is_that_of_a_product_on_packed_operands():
    x, weights, scales, shift = operands("i5", 1, 64, True, outputs=200)
    heard = []
    with listen(lambda name, cost: heard.append((name, cost))):
        packed_linear(x, weights, scales, shift)
    moved = 192 * 208 * 5 // 8 + 2 * 200 * 3 * 4 + 192 * 4 + 200 * 4
    assert heard == [("packed_linear", Cost(2 * 200 * (192 + 2 * 3), moved))]


def test_without_a_compiler_torch_answers_and_says_so(monkeypatch):
    x, weights, scales, shift = operands("i5", 1, 64, True, outputs=200)
    fast = packed_linear(x, weights, scales, shift)
    monkeypatch.setenv("SHOESTRING_CC", "none")
    module._compile.cache_clear()
    module._products_of.cache_clear()
    fresh = replace(weights)  # knows no kernel yet
    try:
        with record_fallbacks() as said:
            slow = packed_linear(x, fresh, scales, shift)
    finally:
        module._compile.cache_clear()
    assert any("unpacks in torch" in line for line in said)
    torch.testing.assert_close(slow, fast, rtol=1e-4, atol=1e-4 * slow.abs().max().item())


def test_operands_that_do_not_belong_together():
    x, weights, scales, shift = operands("u3", 2, 48, True)
    with pytest.raises(ValueError, match="x has 5 inputs, the weights 144"):
        packed_linear(x[:, :5], weights, scales)
    with pytest.raises(
        ValueError, match=r"offsets of shape \(37, 2\); 37 outputs in groups of 48 take \(37, 3\)"
    ):
        packed_linear(x, weights, scales, shift[:, :2])
    with pytest.raises(ValueError, match="100 inputs are not whole groups of group_size=48"):
        PackedWeights.pack(torch.zeros(4, 100, dtype=torch.int32), "u4", 48)
    with pytest.raises(ValueError, match=r"codes reach 0 .. 8; u3 has 0 .. 7"):
        PackedWeights.pack(torch.arange(9).repeat(2, 1), "u3", 9)
