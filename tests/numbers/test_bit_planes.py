"""Codes in two planes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers.bit_planes import BitPlanes, encode_symmetric, naive_symmetric_code

PAIRS = [(4, 4), (6, 4), (8, 4), (10, 4), (12, 4), (2, 0), (2, 1), (8, 0), (3, 13)]


@pytest.mark.parametrize(("msb", "lsb"), PAIRS)
def test_both_planes_make_every_code_again(msb, lsb):
    planes = BitPlanes(msb, lsb)
    codes = torch.arange(-(1 << (planes.bits - 1)), 1 << (planes.bits - 1), dtype=torch.int32)
    high, low = planes.split(codes)
    assert torch.equal(planes.join(high, low), codes)
    assert high.min() == -(1 << (msb - 1))
    assert high.max() == (1 << (msb - 1)) - 1
    rows = codes.reshape(2, -1)
    packed = planes.pack(rows)
    assert tuple(p.shape[1] for p in packed) == planes.plane_bytes(rows.shape[1])
    assert torch.equal(planes.unpack(*packed, rows.shape[1]), rows)
    assert torch.equal(planes.unpack_msb(packed[0], rows.shape[1]), rows >> lsb)


def test_high_bits_round_down_and_mid_takes_the_bias_away():
    planes = BitPlanes(6, 4)
    codes = torch.arange(-512, 512, dtype=torch.int32)
    high, _ = planes.split(codes)
    below = codes - planes.coarse(high)
    assert (below.min(), below.max()) == (0, 15)
    assert (codes - planes.coarse(high, mid=True)).float().mean() == -0.5
    whole = BitPlanes(6, 0)
    assert torch.equal(whole.coarse(high, mid=True), high)


@given(
    row=st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=13), bits=st.sampled_from([2, 4, 10, 16])
)
def test_codes_are_the_rounded_quotients(row, bits):
    codes, step = encode_symmetric(torch.tensor([row]), bits)
    size = float(step[0])
    # The quotient of float32 may round the other way at a tie.
    for code, x in zip(codes[0].tolist(), row, strict=True):
        assert abs(code - naive_symmetric_code(x, size, bits)) <= 1
        assert abs(code * size - x) <= size * 0.5001 + 1e-9
    assert size * (2 ** (bits - 1) - 1) >= max(map(abs, row)) * (1 - 1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BitPlanes(1, 4), "msb_bits=1"),
        (lambda: BitPlanes(4, -1), "lsb_bits=-1"),
        (lambda: BitPlanes(12, 5), "17; codes have at most 16"),
        (lambda: encode_symmetric(torch.ones(1, 2), 1), "bits=1 of values"),
        (lambda: encode_symmetric(torch.tensor([[torch.nan]]), 8, "cached keys"), "cached keys hold NaN"),
        (lambda: encode_symmetric(torch.tensor([[torch.inf]]), 8), "infinite"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
