"""Tokens of a cache in codes on grids of their own: the error bound, what is exact, what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers.token_cache_format import (
    TokenCacheFormat,
    check_float16,
    decode_rows,
    encode_rows,
    naive_round_trip_row,
)

CODES = st.sampled_from([2, 4, 8])


def rows_of(seed, rows, dim, spread, middle):
    generator = torch.Generator().manual_seed(seed)
    return middle + spread * torch.randn(rows, dim, generator=generator)


# Ranges that float16 resolves badly are where rounding the grid to the nearest breaks the bound.
@given(
    bits=CODES,
    seed=st.integers(0, 99),
    dim=st.integers(1, 70),
    spread=st.sampled_from([1e-6, 1e-3, 0.3, 10.0, 3e3]),
    middle=st.sampled_from([0.0, 1e-5, -0.7, 12.3, -300.0, 6e4]),
)
def test_no_value_is_off_by_more_than_half_the_stored_scale(bits, seed, dim, spread, middle):
    x = rows_of(seed, 5, dim, min(spread, 1.0) if middle == 6e4 else spread, middle)
    codes, grid = encode_rows(x, bits, "x")
    assert codes.shape[1] == -(-dim * bits // 8)
    lowest, scale = grid[:, 1:].double(), grid[:, :1].double()
    error = (decode_rows(codes, grid, bits, dim).double() - x.double()).abs()
    # The sum scale · code + lowest is rounded to float32 as well.
    assert (error <= scale / 2 + 2**-23 * (lowest.abs() + (2**bits - 1) * scale)).all()


@given(bits=CODES, seed=st.integers(0, 99), dim=st.integers(1, 40))
def test_the_round_trip_is_that_of_the_definition(bits, seed, dim):
    x = rows_of(seed, 3, dim, 2.0, 0.5)
    found = decode_rows(*encode_rows(x, bits, "x"), bits, dim)
    expected = torch.tensor([naive_round_trip_row(row, bits) for row in x.tolist()])
    # A value half-way between two codes may fall to either side.
    off = (found - expected).abs() > 1e-5
    assert off.float().mean() < 0.02 or off.sum() <= 1


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_constant_rows_are_exact_where_float16_has_the_value(bits):
    x = torch.tensor([[1.5] * 8, [0.0] * 8, [-2048.0] * 8, [0.1] * 8])
    codes, grid = encode_rows(x, bits, "x")
    decoded = decode_rows(codes, grid, bits, 8)
    assert torch.equal(decoded[:3], x[:3])
    assert grid[:3, 0].tolist() == [0, 0, 0]
    assert codes[:3].sum() == 0
    torch.testing.assert_close(decoded[3], x[3], rtol=0, atol=2**-12 * 0.1)


def test_autocast_changes_nothing():
    x = rows_of(1, 3, 16, 2.0, 0.5)
    expected = encode_rows(x, 8, "x")
    with torch.autocast("cpu", torch.bfloat16):
        codes, grid = encode_rows(x, 8, "x")
        assert torch.equal(decode_rows(codes, grid, 8, 16), decode_rows(*expected, 8, 16))


@pytest.mark.parametrize(("bits", "share"), [(8, 68 / 128), (4, 36 / 128), (2, 20 / 128)])
def test_bytes_of_heads_of_64_channels(bits, share):
    assert TokenCacheFormat(bits, bits).token_bytes(3, 64) == share * 3 * 2 * 128


@pytest.mark.parametrize("bits", [3, 0, 32, -8])
def test_widths_that_do_not_exist_are_refused(bits):
    with pytest.raises(ValueError, match=f"key_bits={bits} is not a width.*use 16, 8, 4 or 2"):
        TokenCacheFormat(bits, 8)
    with pytest.raises(ValueError, match=f"value_bits={bits}"):
        TokenCacheFormat(8, bits)


@pytest.mark.parametrize(
    ("form", "dim", "fix"),
    [
        (
            TokenCacheFormat(8, 8),
            24,
            "24 channels, but codes of key_bits=8 come in runs of 16; use key_bits=16",
        ),
        (TokenCacheFormat(16, 4), 48, "value_bits=4 come in runs of 32; use value_bits=16 or 8"),
        (TokenCacheFormat(2, 16), 96, "key_bits=2 come in runs of 64; use key_bits=16 or 8 or 4"),
    ],
)
def test_heads_that_fill_no_run_are_named_with_what_fits(form, dim, fix):
    assert fix in form.why_not(dim)
    with pytest.raises(ValueError, match=fix):
        form.token_bytes(1, dim)
    assert form.why_not(128) is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_refused(value):
    x = torch.zeros(2, 8)
    x[1, 3] = value
    with pytest.raises(ValueError, match="cached keys hold NaN or infinite values"):
        encode_rows(x, 4, "cached keys")
    with pytest.raises(ValueError, match="cached keys hold values that are not finite"):
        check_float16(x, "cached keys")


def test_what_float16_cannot_hold_is_refused():
    x = torch.zeros(2, 8)
    x[0, 0] = -65505.0
    with pytest.raises(ValueError, match=r"reach from -65505 to 0; float16 holds a grid .* up to 65504"):
        encode_rows(x, 8, "cached values")
    x[0, 0] = 1e6  # a step of 1e6 / 3 is beyond float16, one of 1e6 / 255 is not
    with pytest.raises(ValueError, match="up to 65504"):
        encode_rows(x, 2, "cached values")
    assert decode_rows(*encode_rows(x, 8, "x"), 8, 8)[0, 0] == pytest.approx(1e6, rel=1e-3)
