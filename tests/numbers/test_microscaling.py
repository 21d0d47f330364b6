import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers import (
    FORMATS,
    MX_FORMATS,
    FloatFormat,
    MicroscalingFormat,
    dequantize_mx,
    quantize_mx,
    round_to_mx,
)
from shoestring.numbers.naive_rounding import floor_log2, naive_round_to_format

NATIVE = {
    "mxfp8_e5m2": (ml_dtypes.float8_e5m2, 15, 57344),
    "mxfp8_e4m3": (ml_dtypes.float8_e4m3fn, 8, 448),
    "mxfp6_e3m2": (ml_dtypes.float6_e3m2fn, 4, 28),
    "mxfp6_e2m3": (ml_dtypes.float6_e2m3fn, 2, 7.5),
    "mxfp4": (ml_dtypes.float4_e2m1fn, 2, 6),
}


@pytest.mark.parametrize("name", NATIVE)
def test_float_elements_equal_the_specification_over_ml_dtypes(name):
    dtype, emax, xmax = NATIVE[name]
    generator = np.random.default_rng(0)
    x = (generator.standard_normal((50, 64)) * 2.0 ** generator.integers(-30, 30, (50, 1))).astype(np.float32)
    x[0, :32] = 0
    expected = np.empty_like(x)
    for row in range(50):
        for start in (0, 32):
            block = x[row, start : start + 32].astype(np.float64)
            exponent = -127 if not block.any() else floor_log2(Fraction(np.abs(block).max())) - emax
            scaled = np.clip(block / 2.0**exponent, -xmax, xmax)
            expected[row, start : start + 32] = scaled.astype(dtype).astype(np.float64) * 2.0**exponent
    rounded = round_to_mx(torch.from_numpy(x), MX_FORMATS[name])
    assert np.array_equal(rounded.numpy(), expected)
    codes, scales = quantize_mx(torch.from_numpy(x), MX_FORMATS[name])
    assert torch.equal(dequantize_mx(codes, scales, MX_FORMATS[name]).reshape(50, 64).float(), rounded)
    assert (codes.dtype, scales.dtype) == (torch.uint8, torch.uint8)
    assert int(scales[0, 0]) == 0


def test_mxint8():
    x = torch.tensor([[1.0, -1.996, 1.999, 1 / 64, 1.5 / 64, 2.5 / 64] + [0.0] * 26])
    rounded = round_to_mx(x, MX_FORMATS["mxint8"])[0, :6]
    assert rounded.tolist() == [1.0, -2.0, 127 / 64, 1 / 64, 2 / 64, 2 / 64]


@given(
    exp_bits=st.integers(1, 5),
    sig_bits=st.integers(1, 6),
    block_size=st.integers(1, 17),
    scale_bits=st.integers(2, 8),
    count=st.integers(1, 40),
    exponent=st.integers(-30, 30),
    seed=st.integers(0, 99),
)
def test_custom_elements_blocks_and_scales(exp_bits, sig_bits, block_size, scale_bits, count, exponent, seed):
    fmt = MicroscalingFormat(FloatFormat(exp_bits, sig_bits, finite_only=True), block_size, scale_bits)
    x = (
        torch.randn(2, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        * 2.0**exponent
    )
    rounded = round_to_mx(x, fmt, pad=True)
    limit = 2 ** (scale_bits - 1) - 1
    for start in range(0, count, block_size):
        block = x[:, start : start + block_size]
        for row in range(2):
            scale = floor_log2(Fraction(float(block[row].abs().max()))) - fmt.element.emax
            scale = min(max(scale, -limit), limit)
            for value, got in zip(
                block[row].tolist(), rounded[row, start : start + block_size].tolist(), strict=True
            ):
                assert got == math.ldexp(naive_round_to_format(math.ldexp(value, -scale), fmt.element), scale)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", MX_FORMATS)
def test_a_block_with_a_non_number_is_nan_and_its_neighbour_is_not(name, bad):
    x = torch.ones(64)
    x[5] = bad
    rounded = round_to_mx(x, MX_FORMATS[name])
    assert rounded[:32].isnan().all()
    assert torch.equal(rounded[32:], torch.ones(32))
    _, scales = quantize_mx(x, MX_FORMATS[name])
    assert int(scales[0]) == 0xFF


def test_extreme_scales():
    smallest = torch.full((32,), 2.0**-149)
    assert torch.equal(round_to_mx(torch.zeros(32), MX_FORMATS["mxfp4"]), torch.zeros(32))
    assert torch.equal(round_to_mx(smallest, MX_FORMATS["mxfp4"]), torch.zeros(32))
    largest = torch.full((32,), 1.5 * 2.0**127)
    assert torch.equal(round_to_mx(largest, MX_FORMATS["mxfp4"]), largest)


def test_bad_input():
    with pytest.raises(ValueError, match="block_size=32 does not divide the last axis of 31"):
        round_to_mx(torch.zeros(31), MX_FORMATS["mxfp4"])
    with pytest.raises(ValueError, match="scale_bits=9"):
        MicroscalingFormat(FORMATS["e2m1"], scale_bits=9)
    with pytest.raises(ValueError, match="block_size=0"):
        MicroscalingFormat(FORMATS["e2m1"], block_size=0)
    with pytest.raises(ValueError, match="packs up to 16"):
        MicroscalingFormat(FORMATS["tf32"])
    with pytest.raises(ValueError, match="need a sign"):
        MicroscalingFormat(FORMATS["e8m0"])
