import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.kernels import fft_convolution_compiled, fft_convolution_torch
from shoestring.kernels.fft_convolution import fft_convolve, kernel_spectrum, naive_convolve
from shoestring.kernels.fft_convolution_torch import fft_length


def _numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _is_fast(n: int) -> bool:
    for prime in (2, 3, 5):
        while n % prime == 0:
            n //= prime
    return n == 1


@settings(max_examples=20)
@given(st.integers(1, 3000))
def test_length_is_the_least_even_product_of_small_primes(n):
    assert fft_length(n) == next(m for m in range(n, 2 * n + 2) if m % 2 == 0 and _is_fast(m))


def test_lengths_known():
    assert [fft_length(n) for n in (1, 2, 3, 15, 257, 8192, 16385)] == [2, 2, 4, 16, 270, 8192, 16875 + 405]
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        fft_length(0)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("block_bytes", [1, 8 * 3 * 2 * 50 * 2, 1 << 30])
def test_blocks_of_channels_change_nothing(monkeypatch, copies, block_bytes):
    monkeypatch.setattr(fft_convolution_torch, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(fft_convolution_compiled, "why_not", lambda u, steps: "a test")
    u, kernel = _numbers(0, 3, 5, 25).requires_grad_(), _numbers(1, copies, 5, 25).requires_grad_()
    results = []
    for y in (fft_convolve(u, kernel), naive_convolve(u, kernel)):
        results.append((y, *torch.autograd.grad((y * _numbers(2, *y.shape)).sum(), (u, kernel))))
    torch.testing.assert_close(*results)
    with torch.no_grad():
        torch.testing.assert_close(fft_convolve(u, kernel_spectrum(kernel, 25)), results[1][0])
    spoiled = u.detach().clone()
    spoiled[2, 4, 7] = float("nan")
    with pytest.raises(ValueError, match="u holds NaN"):
        fft_convolve(spoiled, kernel)
