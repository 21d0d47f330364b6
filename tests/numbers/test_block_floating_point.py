import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers import (
    BLOCK_FLOAT_FORMATS,
    BlockFloatFormat,
    dequantize_blocks,
    quantize_blocks,
    round_to_blocks,
)
from shoestring.numbers.block_floating_point import naive_round_block


@given(
    mantissa_bits=st.integers(2, 16),
    exponent_bits=st.integers(2, 8),
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9),
    exponent=st.integers(-40, 40),
)
def test_a_block_equals_the_definition(mantissa_bits, exponent_bits, values, exponent):
    half = 2 ** (mantissa_bits - 1)
    values = [*values, (half - 1) / half * 2.0**exponent, 2.0**exponent]
    for block in (values, values[-1:], values[-2:-1], [v for v in values if abs(v) <= 2.0**exponent]):
        fmt = BlockFloatFormat(mantissa_bits, len(block), exponent_bits)
        rounded = round_to_blocks(torch.tensor([block], dtype=torch.float64), fmt)
        assert rounded[0].tolist() == naive_round_block(block, fmt)


@given(rows=st.integers(0, 3), count=st.integers(1, 70), name=st.sampled_from(list(BLOCK_FLOAT_FORMATS)))
def test_padding_blocks_and_storage(rows, count, name):
    fmt = BLOCK_FLOAT_FORMATS[name]
    x = torch.randn(rows, count)
    rounded = round_to_blocks(x, fmt, pad=True)
    assert rounded.shape == x.shape
    mantissas, exponents = quantize_blocks(x, fmt, pad=True)
    assert mantissas.shape == (rows, -(-count // fmt.block_size), fmt.block_size)
    half = 1 << (fmt.mantissa_bits - 1)
    assert bool(((mantissas >= -half) & (mantissas < half)).all())
    back = dequantize_blocks(mantissas, exponents, fmt).flatten(-2)[..., :count]
    assert torch.equal(back.float(), rounded)
    for row in range(rows):  # rows share no block
        assert torch.equal(round_to_blocks(x[row], fmt, pad=True), rounded[row])
    assert torch.equal(round_to_blocks(rounded, fmt, pad=True), rounded) or fmt.mantissa_bits == 2


def test_presets():
    sizes = {name: (fmt.mantissa_bits, fmt.block_size) for name, fmt in BLOCK_FLOAT_FORMATS.items()}
    assert sizes["bfp16"] == (16, 16)
    assert sizes["bfp4"] == (4, 32)
    assert sizes["bfp3"] == (3, 64)
    assert sizes["bfp2"] == (2, 128)
    assert BLOCK_FLOAT_FORMATS["flexpoint16"].exponents == (-15, 16)
    assert BLOCK_FLOAT_FORMATS["bfp4"].bits_per_value == 4.25


def test_special_values():
    fmt = BlockFloatFormat(8, 4)
    y = round_to_blocks(torch.tensor([1.0, torch.nan, torch.inf, -torch.inf]), fmt)
    # max|finite| = 1 needs X = 1: 127/128 · 2 ≥ 1; infinities clamp to −2 and 2·127/128
    assert y[0] == 1
    assert y[1].isnan()
    assert y[2:].tolist() == [127 / 64, -2]
    _, exponents = quantize_blocks(torch.zeros(4), fmt)
    assert exponents.tolist() == [-127]


def test_bad_input():
    fmt = BLOCK_FLOAT_FORMATS["bfp8"]
    with pytest.raises(ValueError, match=r"block_size=32 does not divide the last axis of 33; use pad=True"):
        round_to_blocks(torch.zeros(2, 33), fmt)
    with pytest.raises(ValueError, match="scalar"):
        round_to_blocks(torch.tensor(1.0), fmt)
    with pytest.raises(TypeError, match="float32 or float64 torch tensors, not torch.int64"):
        round_to_blocks(torch.zeros(32, dtype=torch.int64), fmt)
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_blocks(torch.full((32,), torch.nan), fmt)
    with pytest.raises(ValueError, match="mantissa_bits=1"):
        BlockFloatFormat(1, 32)
    with pytest.raises(ValueError, match="block_size=0"):
        BlockFloatFormat(8, 0)
    with pytest.raises(ValueError, match="exponent_bits=9"):
        BlockFloatFormat(8, 32, 9)
