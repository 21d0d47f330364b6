"""The compiled dequantise loop and plain torch give the same bits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.kernels import dequantise
from shoestring.kernels.dequantise import dequantise_rows
from shoestring.notices import record_fallbacks
from shoestring.numbers.affine_fit import fit_min_max
from shoestring.numbers.grouped_affine import GroupedAffine, ZeroPoint


@given(
    bits=st.integers(2, 8),
    group_size=st.sampled_from([1, 3, 5, 8, 32]),
    zero_point=st.sampled_from(list(ZeroPoint)),
    scale_bits=st.sampled_from([6, 8, 16, 32]),
    rows=st.integers(1, 9),
    groups=st.integers(1, 7),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_compiled_equals_plain_bit_for_bit(bits, group_size, zero_point, scale_bits, rows, groups, dtype):
    form = GroupedAffine(bits, group_size, zero_point, scale_bits)
    weight = torch.randn(rows, groups * group_size, generator=torch.Generator().manual_seed(bits))
    grid = fit_min_max(form, weight)
    stored = form.store(form.encode(weight, grid), grid)
    fast = dequantise_rows(form, stored, weight.shape[1], dtype)
    assert torch.equal(fast, form.dequantise(stored, weight.shape[1]).to(dtype))


def test_without_a_compiler_plain_torch_answers_and_says_so(monkeypatch):
    form = GroupedAffine(5, 16)
    weight = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    grid = fit_min_max(form, weight)
    stored = form.store(form.encode(weight, grid), grid)
    fast = dequantise_rows(form, stored, 48)
    monkeypatch.setenv("SHOESTRING_CC", "none")
    dequantise._library.cache_clear()
    try:
        with record_fallbacks() as said:
            slow = dequantise_rows(form, stored, 48)
    finally:
        dequantise._library.cache_clear()
    assert torch.equal(fast, slow)
    assert any("plain torch instead of the compiled loop" in line for line in said)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_plain_torch_gives_the_same():
    form = GroupedAffine(3, 32, ZeroPoint.REAL)
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    grid = fit_min_max(form, weight)
    stored = form.store(form.encode(weight, grid), grid)
    there = dequantise_rows(form, {k: v.cuda() for k, v in stored.items()}, 64)
    torch.testing.assert_close(there.cpu(), dequantise_rows(form, stored, 64), rtol=1e-6, atol=1e-8)
