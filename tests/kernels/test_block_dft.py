import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shoestring.kernels.block_dft import (
    BASE_SIZES,
    block_dft,
    block_inverse_dft,
    block_length,
    block_radices,
    dft_matrix,
    naive_dft,
)


def _signal(*shape: int, dtype: torch.dtype = torch.complex128) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("bits", range(4, 17))
@pytest.mark.parametrize("first", BASE_SIZES)
def test_equals_torch_for_every_split(bits, first):
    n = 2**bits
    x = _signal(2, n, dtype=torch.complex64)
    radices = (first, *block_radices(n // first)) if n > first else (n,)
    assert _error(block_dft(x, radices=radices), torch.fft.fft(x)) < 1e-5


@settings(max_examples=12)
@given(st.lists(st.sampled_from(BASE_SIZES), min_size=1, max_size=3), st.sampled_from([(), (1,), (3, 2)]))
def test_equals_the_dense_product_and_its_inverse(radices, batch):
    n = math.prod(radices)
    assume(n <= 256)
    x = _signal(*batch, n)
    spectrum = block_dft(x, radices=radices)
    torch.testing.assert_close(spectrum, naive_dft(x))
    torch.testing.assert_close(block_inverse_dft(spectrum, radices=radices), x)
    torch.testing.assert_close(block_dft(x.real, radices=radices), naive_dft(x.real))


@settings(max_examples=10)
@given(bits=st.integers(1, 8), channels=st.sampled_from([1, 3]))
def test_one_matrix_a_channel(bits, channels):
    """Any matrices, each on its own channel, the same at all levels; gradients reach them."""
    n = 2**bits
    matrices = {m: _signal(channels, m, m).requires_grad_() for m in set(block_radices(n))}
    x = _signal(2, channels, n)
    found = block_dft(x, matrices=matrices)
    apart = [
        block_dft(x[:, i], matrices={m: matrix[i] for m, matrix in matrices.items()}) for i in range(channels)
    ]
    torch.testing.assert_close(found, torch.stack(apart, dim=1))
    for grad in torch.autograd.grad(found.abs().sum(), list(matrices.values())):
        assert grad.abs().sum() > 0


def test_a_matrix_acts_from_the_left():
    matrix, x = _signal(4, 4), _signal(4)
    torch.testing.assert_close(block_dft(x, matrices={4: matrix}), matrix @ x)
    matrices = {4: matrix, 2: _signal(2, 2)}
    u = (matrix @ x.new_tensor(range(8)).view(4, 2)) * dft_matrix(8, x.dtype)[:4, :2]
    expected = (u @ matrices[2].mT).mT.flatten()
    torch.testing.assert_close(block_dft(x.new_tensor(range(8)), radices=(4, 2), matrices=matrices), expected)


def test_gradient():
    x = _signal(2, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: block_dft(x, radices=(2, 4)), x)


def test_lengths():
    assert [block_radices(n) for n in (2, 16, 32, 4096, 8192)] == [
        (2,),
        (16,),
        (16, 2),
        (16, 16, 16),
        (16, 16, 16, 2),
    ]
    assert [block_length(n) for n in (1, 2, 3, 16, 17)] == [2, 2, 4, 16, 32]
    for n, padded in ((1, 2), (7, 8), (96, 128)):
        with pytest.raises(ValueError, match=f"n={n} is no power of two above 1; pad to {padded} with zeros"):
            block_dft(torch.randn(3, n))
    for radices in ((4, 2), (32,), (3, 4)):
        with pytest.raises(ValueError, match="must be of .* and multiply to n=16"):
            block_dft(torch.randn(16), radices=radices)
