"""Keys by channel and values by token, with the scales of channels taken out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers.packing import pack_bits, unpack_bits
from shoestring.numbers.tier_format import (
    TierFormat,
    channel_scales,
    decode_keys,
    decode_values,
    encode_keys,
    encode_values,
    group_bytes,
    naive_keys,
    naive_values,
)
from shoestring.numbers.token_cache_format import decode_rows, encode_rows

tables = {
    "bits": st.sampled_from([8, 4, 2]), "tokens": st.integers(1, 37), "channels": st.integers(1, 19),
    "spread": st.sampled_from([1e-3, 1.0, 100.0]), "seed": st.integers(0, 99),
}  # fmt: skip


def table(tokens, channels, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(channels, generator=generator) * spread
    return torch.randn(tokens, channels, generator=generator) * sizes + sizes


@given(**tables)
def test_nothing_is_off_by_more_than_half_a_scale(bits, tokens, channels, spread, seed):
    x = table(tokens, channels, spread, seed)
    codes, grid = encode_keys(x, bits)
    error = (decode_keys(codes, grid, bits, tokens) - x).abs()
    assert bool((error <= grid[:, 0].float() / 2 + 1e-6 * x.abs()).all())
    c = channel_scales(x)
    value_codes, value_grid = encode_values(x, c, bits)
    error = (decode_values(value_codes, value_grid, c, bits) - x).abs()
    bound = value_grid[:, :1].float() / 2 * c.float()
    assert bool((error <= bound * 1.00001 + 1e-6 * x.abs()).all())
    held = sum(t.nbytes for t in (codes, grid, value_codes, value_grid))
    assert held == group_bytes(bits, tokens, channels)


@given(**tables)
def test_what_is_read_back_is_what_the_equations_say(bits, tokens, channels, spread, seed):
    """But for grids in float16: one step where a value lies between two codes."""
    x = table(tokens, channels, spread, seed)
    codes, grid = encode_keys(x, bits)
    step = (x.amax(0) - x.amin(0)) / (2**bits - 1)
    slack = 2e-3 * x.abs().max() + 1e-6
    error = (decode_keys(codes, grid, bits, tokens) - naive_keys(x, bits)).abs()
    assert bool((error <= step + slack).all())
    c = channel_scales(x)
    shared = x / c.float()
    step = (shared.amax(1) - shared.amin(1)) / (2**bits - 1)
    found = decode_values(*encode_values(x, c, bits), c, bits)
    error = (found - naive_values(x, bits)).abs() / c.float()
    assert bool((error <= step[:, None] + 4e-3 * shared.abs().max() + 1e-6).all())


@given(bits=st.sampled_from([4, 2]), count=st.integers(1, 60))
def test_packing_is_the_identity_on_all_codes(bits, count):
    codes = (torch.arange(count * 3).reshape(3, count) % (1 << bits)).to(torch.uint8)
    assert torch.equal(unpack_bits(pack_bits(codes, bits), bits, count), codes)


def test_one_large_channel_does_not_spoil_the_others():
    v = torch.randn(500, 64, generator=torch.Generator().manual_seed(3))
    v[:, 5] *= 100
    others = torch.arange(64) != 5
    c = channel_scales(v)
    split = decode_values(*encode_values(v, c, 4), c, 4)
    plain = decode_rows(*encode_rows(v, 4, "v"), 4, 64)
    error, plain_error = ((x - v)[:, others].square().mean().sqrt() for x in (split, plain))
    assert plain_error >= 5 * error


def test_channels_and_tokens_of_nothing_are_read_back_as_they_are():
    v = torch.zeros(4, 6)
    v[1:, 2] = 3.0
    c = channel_scales(v)
    assert c.tolist() == [1, 1, pytest.approx(3**0.5, rel=1e-3), 1, 1, 1]
    assert torch.equal(decode_values(*encode_values(v, c, 2), c, 2)[0], v[0])
    assert torch.equal(decode_keys(*encode_keys(torch.full((3, 2), 0.5), 2), 2, 3), torch.full((3, 2), 0.5))


@pytest.mark.parametrize(
    ("high", "low", "message"),
    [(3, 2, "high_bits=3 is not a width"), (4, 1, "low_bits=1"), (2, 4, "high_bits=2 are fewer than low_")],
)
def test_widths_that_are_none_are_refused(high, low, message):
    with pytest.raises(ValueError, match=message):
        TierFormat(high, low)


def test_values_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="cached values hold NaN"):
        channel_scales(torch.tensor([[torch.nan]]))
    with pytest.raises(ValueError, match="cached keys hold NaN"):
        encode_keys(torch.tensor([[torch.inf]]), 4)
