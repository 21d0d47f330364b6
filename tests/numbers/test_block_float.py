"""Block-scaled narrow floats: exact bytes, the meaning weight by weight, agreement with torch and MX."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from shoestring.numbers import MX_FORMATS, dequantize_mx, quantize_mx
from shoestring.numbers.block_float import E4M3_BLOCKS, MXFP4, BlockFloat, naive_dequantise_blocks

forms = st.sampled_from(
    [BlockFloat("e4m3fn", 4, 3), BlockFloat("e2m1", 1, 4, True), BlockFloat("e5m2", 3, 5)]
)


@settings(max_examples=40, deadline=None)
@given(forms, st.integers(1, 9), st.integers(1, 4), st.integers(0, 3), st.integers(0, 99))
def test_stored_tensors_mean_what_the_naive_reader_says(form, rows, blocks, extra, seed):
    cols = blocks * form.block_cols + (0 if form.power_scales else extra)
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    stored = form.store(weight)
    assert {k: (tuple(v.shape), v.dtype) for k, v in stored.items()} == form.tensors(rows, cols)
    assert sum(v.nbytes for v in stored.values()) == form.nbytes(rows, cols)
    whole = form.dequantise(stored, cols)
    torch.testing.assert_close(whole, naive_dequantise_blocks(form, stored, cols), rtol=1e-6, atol=0)
    part = slice(form.block_rows, 2 * form.block_rows)
    assert torch.equal(form.dequantise(stored, cols, part), whole[part])
    # Half a step at most, which is half the spacing of the largest element.
    spread = form._spread(form.scale_values(stored), rows, cols)
    step = 2.0 ** (form.format.emax - form.format.sig_bits)
    clipped = form.format.xmax if form.power_scales else 0
    assert ((whole - weight).abs() <= spread * (step / 2 + clipped / 3) * 1.001).all()


def test_e4m3_blocks_round_as_torch_does():
    weight = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    found = E4M3_BLOCKS.dequantise(E4M3_BLOCKS.store(weight), 200)
    for r in range(0, 300, 128):
        for c in range(0, 200, 128):
            block = weight[r : r + 128, c : c + 128]
            scale = block.abs().max() / 448
            expected = (block.double() / scale.double()).float().to(torch.float8_e4m3fn).float() * scale
            torch.testing.assert_close(found[r : r + 128, c : c + 128], expected, rtol=1e-6, atol=0)


def test_mxfp4_is_the_format_of_the_specification():
    weight = torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    weight[2, :32] = 0
    codes, scales = quantize_mx(weight, MX_FORMATS["mxfp4"])
    stored = MXFP4.store(weight)
    assert torch.equal(stored["scales"], scales)
    assert torch.equal(
        MXFP4.dequantise(stored, 96), dequantize_mx(codes, scales, MX_FORMATS["mxfp4"]).float().flatten(1)
    )
    assert MXFP4.nbytes(1, 32) * 8 / 32 == 4.25


def test_bad_input():
    with pytest.raises(ValueError, match="at most 8 are stored"):
        BlockFloat("fp16", 1, 32)
    with pytest.raises(ValueError, match="a block of 0 x 3"):
        BlockFloat("e2m1", 0, 3)
    with pytest.raises(ValueError, match="33 input features, which blocks of 32 do not divide"):
        MXFP4.store(torch.zeros(2, 33))
    with pytest.raises(ValueError, match="'layer' holds NaN"):
        E4M3_BLOCKS.store(torch.tensor([[torch.nan]]), "layer")
