import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers import pack_bits, packed_bytes, unpack_bits
from shoestring.numbers.packing import naive_pack_bits


@given(
    bits=st.integers(1, 16),
    rows=st.integers(0, 3),
    count=st.integers(0, 40),
    seed=st.integers(0, 1000),
    kind=st.sampled_from([np.int64, np.int32, np.uint16]),
)
def test_both_back_ends_pack_the_bits_of_the_definition(bits, rows, count, seed, kind):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, count)).astype(kind)
    before = codes.copy()
    packed = pack_bits(codes, bits)
    assert packed.shape == (rows, packed_bytes(count, bits))
    for row in range(rows):
        assert packed[row].tobytes() == naive_pack_bits(codes[row].tolist(), bits)
    on_torch = pack_bits(torch.from_numpy(codes), bits)
    assert np.array_equal(on_torch.numpy(), packed)
    assert on_torch.is_contiguous()
    assert np.array_equal(unpack_bits(packed, bits, count), codes)
    assert np.array_equal(unpack_bits(on_torch, bits, count).numpy(), codes)
    assert np.array_equal(codes, before)


def test_packing_bytes_leaves_its_argument_alone_and_shares_nothing():
    for bits in (4, 8):
        codes = torch.arange(16, dtype=torch.uint8) & ((1 << bits) - 1)
        before = codes.clone()
        packed = pack_bits(codes, bits)
        packed.zero_()
        assert torch.equal(codes, before)
        array = before.numpy().copy()
        pack_bits(array, bits)[:] = 0
        assert np.array_equal(array, before.numpy())


def test_strided_and_deep_arrays():
    codes = torch.arange(2 * 3 * 10, dtype=torch.uint8).reshape(2, 10, 3).transpose(1, 2) % 8
    packed = pack_bits(codes, 3)
    assert packed.shape == (2, 3, 4)
    assert torch.equal(unpack_bits(packed, 3, 10), codes)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: pack_bits(np.array([3, 16]), 4),
            ValueError,
            "code 16 does not fit bits=4; codes run from 0 to 15",
        ),
        (lambda: pack_bits(torch.tensor([-1]), 4), ValueError, "code -1 does not fit"),
        (lambda: pack_bits(np.array([1.0]), 4), TypeError, "integers, not float64; encode"),
        (lambda: pack_bits([1, 2], 4), TypeError, "not list"),
        (lambda: pack_bits(torch.tensor(3), 4), ValueError, "at least one axis"),
        (lambda: pack_bits(np.array([1]), 17), ValueError, "bits=17: codes of 1 to 16"),
        (lambda: pack_bits(np.array([1]), 0), ValueError, "bits=0"),
        (
            lambda: unpack_bits(torch.zeros(3, dtype=torch.uint8), 4, 7),
            ValueError,
            "7 codes of 4 bits take 4 bytes",
        ),
        (lambda: unpack_bits(np.zeros(4, np.int32), 4, 7), TypeError, "uint8, not int32"),
        (lambda: packed_bytes(-1, 4), ValueError, "count=-1"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
