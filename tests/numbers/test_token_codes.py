"""Cached tokens in codes: every channel within half a step of what it was."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers.block_format import BlockFormat
from shoestring.numbers.token_codes import decode_tokens, encode_tokens, naive_token_round_trip


def vectors(seed, lead, dim, spread, offset):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*lead, dim, generator=generator) * spread + offset


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 5),
    dim=st.sampled_from([2, 6, 16, 34, 64, 128]),
    bits=st.sampled_from([8, 4]),
    spread=st.sampled_from([1e-3, 1.0, 300.0]),
    offset=st.sampled_from([0.0, -7.3, 2000.0]),
)
def test_codes_mean_what_the_definition_says(seed, rows, dim, bits, spread, offset):
    x = vectors(seed, (rows,), dim, spread, offset)
    codes, parameters = encode_tokens(x, bits)
    assert codes.shape == (rows, dim * bits // 8)
    found = decode_tokens(codes, parameters, bits)
    scale = parameters[:, :1].float()
    naive = torch.stack([naive_token_round_trip(vector, bits) for vector in x])
    torch.testing.assert_close(found, naive, rtol=1e-6, atol=0)
    # The bound of the sheet, and what float32 arithmetic on numbers of this size adds.
    assert ((found - x).abs() <= scale / 2 + 2e-7 * x.abs().max()).all()


@given(value=st.floats(-60000, 60000, width=16), bits=st.sampled_from([8, 4]))
def test_constant_vectors_that_float16_holds_are_exact(value, bits):
    x = torch.full((1, 16), value)
    assert torch.equal(decode_tokens(*encode_tokens(x, bits), bits), x)


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "NaN or infinite"), (float("inf"), "NaN or infinite"), (-7e4, "up to 65504")],
)
def test_numbers_without_codes_are_refused(value, message):
    x = torch.zeros(3, 16)
    x[1, 5] = value
    with pytest.raises(ValueError, match=message):
        encode_tokens(x, 8, "cached keys")


def test_channels_that_do_not_fill_bytes_are_refused():
    with pytest.raises(ValueError, match="heads of 15 channels"):
        encode_tokens(torch.zeros(1, 15), 4)


@pytest.mark.parametrize("slots", [0, -16])
def test_blocks_without_slots_are_refused(slots):
    with pytest.raises(ValueError, match=f"slots={slots}"):
        BlockFormat(slots)


@pytest.mark.parametrize("bits", [16, 2, 0])
def test_widths_without_a_code_are_refused(bits):
    with pytest.raises(ValueError, match=f"value_bits={bits}"):
        BlockFormat(16, 8, bits)


def test_bytes_are_those_of_the_sheet():
    half = BlockFormat(64).token_bytes(3, 64, torch.float16)
    assert BlockFormat(64, 8, 8).token_bytes(3, 64, torch.float16) / half == (64 + 4) / 128
    assert BlockFormat(64, 4, 4).token_bytes(3, 64, torch.float16) / half == (32 + 4) / 128
