import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.kernels.block_dft import block_dft, block_inverse_dft
from shoestring.kernels.fft_convolution import fft_convolve
from shoestring.kernels.three_pass_convolution import (
    PassTraffic,
    ThreePassPlan,
    split_rows,
    three_pass_convolve,
)


def _numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(
    rows=st.integers(1, 17),
    row_length=st.integers(1, 33),
    cut=st.integers(0, 9),
    half_rows=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_fft_convolution(rows, row_length, cut, half_rows, seed):
    plan = ThreePassPlan(rows=rows, row_length=row_length, half_rows=half_rows)
    seq = max(1, (plan.n + 1) // 2 - cut)
    u, kernel = (
        x.requires_grad_() for x in (_numbers(seed, 2, 3, seq), _numbers(seed + 1, 3, plan.n - seq + 1))
    )
    found, expected = three_pass_convolve(u, kernel, plan), fft_convolve(u, kernel)
    torch.testing.assert_close(found, expected)
    upstream = _numbers(seed + 2, *found.shape)
    grads = [torch.autograd.grad((y * upstream).sum(), (u, kernel)) for y in (found, expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("half_rows", [True, False])
@pytest.mark.parametrize("bits", range(10))
def test_every_factorisation_of_512_in_float32(bits, half_rows):
    plan = ThreePassPlan(rows=2**bits, row_length=2 ** (9 - bits), half_rows=half_rows)
    if plan.row_length > 1:
        plan = ThreePassPlan(
            rows=plan.rows,
            row_length=plan.row_length,
            half_rows=half_rows,
            transform=block_dft,
            inverse=block_inverse_dft,
        )
    u, kernel = _numbers(0, 2, 256, dtype=torch.float32), _numbers(1, 2, 256, dtype=torch.float32)
    expected = fft_convolve(u.double(), kernel.double())
    error = (three_pass_convolve(u, kernel, plan) - expected).norm() / expected.norm()
    assert error < 2e-6


@given(rows=st.integers(2, 12), row_length=st.integers(1, 12))
def test_the_rows_left_out_follow_from_the_others(rows, row_length):
    plan = ThreePassPlan(rows=rows, row_length=row_length, half_rows=False)
    u = split_rows(_numbers(0, plan.n), plan)
    turn = torch.polar(torch.ones(row_length), -2 * math.pi * torch.arange(row_length) / row_length)
    for r in range(1, rows):
        torch.testing.assert_close(u[rows - r], (turn * u[r].conj()).to(u.dtype), rtol=1e-5, atol=1e-5)


def _radix_2(x: torch.Tensor, traffic: PassTraffic) -> torch.Tensor:
    """The fast transform level by level, each a pass over the whole sequence."""
    n, half = x.shape[-1], 1
    bits = n.bit_length() - 1
    order = torch.tensor([int(f"{i:0{bits}b}"[::-1], 2) for i in range(n)])
    x = x.to(torch.complex128)[order]
    while half < n:

        def level(x: torch.Tensor, half: int = half) -> torch.Tensor:
            even, odd = x.view(-1, 2, half).unbind(1)
            odd = odd * torch.polar(torch.ones(half).double(), -math.pi * torch.arange(half).double() / half)
            return torch.cat([even + odd, even - odd], dim=-1).flatten()

        x, half = traffic.run(level, x), 2 * half
    return x


@pytest.mark.parametrize("bits", [8, 10, 14, 16])
def test_three_reads_and_three_writes_whatever_the_length(bits):
    n = 2**bits
    u, kernel = _numbers(0, 1, n // 2), _numbers(1, 1, n // 2)
    traffic, plan = PassTraffic(), ThreePassPlan.of_blocks(n // 2, n // 2, largest_row=64)
    assert (plan.n, plan.row_length) == (n, 64)
    torch.testing.assert_close(three_pass_convolve(u, kernel, plan, traffic=traffic), fft_convolve(u, kernel))
    assert (traffic.reads, traffic.writes) == (3, 3)
    # Half the rows of complex numbers take the room of the real sequence, and one row more.
    buffers = (traffic.bytes_read + traffic.bytes_written) / (n * u.element_size())
    assert buffers == pytest.approx(6 + 8 / plan.rows)
    loop = PassTraffic()
    torch.testing.assert_close(_radix_2(u[0], loop), torch.fft.fft(u[0] + 0j))
    assert (loop.reads, loop.writes) == (bits - 1, bits - 1)


def test_bad_input():
    with pytest.raises(ValueError, match="rows=0 must be at least 1"):
        ThreePassPlan(rows=0, row_length=4)
    with pytest.raises(ValueError, match=r"rows=2 of row_length=7 are 14 points; 8 steps and 8 lags need 15"):
        three_pass_convolve(torch.randn(1, 8), torch.randn(1, 8), ThreePassPlan(rows=2, row_length=7))
