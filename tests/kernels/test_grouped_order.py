"""The order of the symbolic unpacker is a bijection, and that in which the compiled packer packs."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from shoestring.kernels.grouped_linear import _packed_planes, block_inputs
from shoestring.kernels.grouped_order import pack_by_order, quartet_order
from shoestring.numbers.packing import pack_bits


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_stored_bit_is_one_bit_of_one_code(bits):
    order = quartet_order(bits)
    assert order.shape == (4, 64, bits)
    assert np.array_equal(np.sort(order.reshape(-1)), np.arange(256 * bits))


@given(
    bits=st.integers(1, 8),
    rows=st.one_of(st.integers(1, 40), st.sampled_from([16, 48])),
    groups=st.integers(1, 4),
    group_size=st.sampled_from([1, 3, 8, 16, 24, 32, 36, 48, 64, 97]),
    seed=st.integers(0, 99),
)
def test_scattering_by_the_order_is_what_the_compiled_packer_does(bits, rows, groups, group_size, seed):
    cols, block = groups * group_size, block_inputs(group_size)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(1 << bits, (rows, cols), generator=generator, dtype=torch.uint8)
    compiled = [p for p in _packed_planes(pack_bits(codes, bits), bits, group_size, cols) if p is not None]
    derived = pack_by_order(codes.numpy(), bits, block)
    assert len(derived) == len(compiled)
    for own, theirs in zip(derived, compiled, strict=True):
        assert np.array_equal(own, theirs.numpy())


@pytest.mark.parametrize("bits", range(1, 9))
def test_unpacking_what_was_packed_gives_the_codes(bits):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (16, 16), dtype=np.uint8)
    planes = np.concatenate(pack_by_order(codes, bits, 16))
    found = np.unpackbits(planes, bitorder="little")[quartet_order(bits)]
    values = (found.astype(int) << np.arange(bits)).sum(-1)
    assert np.array_equal(values.reshape(4, 16, 4).transpose(1, 0, 2).reshape(16, 16), codes)


def test_bad_input():
    with pytest.raises(ValueError, match="bits=9"):
        quartet_order(9)
    with pytest.raises(ValueError, match="10 columns are not whole blocks of 4"):
        pack_by_order(np.zeros((2, 10), dtype=np.uint8), 4, 4)
