"""The spectrum of a diagonal plus low rank state space, block by block, against the equation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.kernels.cauchy import dplr_spectrum, naive_dplr_spectrum
from shoestring.yardstick.memory import LiveMemory


def state_space(channels, features, n, seed=0, dtype=torch.complex128):
    g = torch.Generator().manual_seed(seed)
    real = torch.zeros((), dtype=dtype).real.dtype

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, generator=g)

    decay = -0.1 - torch.rand(features, n, dtype=real, generator=g)
    poles = torch.complex(decay, 5 * torch.randn(features, n, dtype=real, generator=g))
    step = 0.01 + 0.3 * torch.rand(features, dtype=real, generator=g)
    arguments = normal(channels, features, n), poles, normal(features, n), normal(features, n), step
    return [argument.requires_grad_() for argument in arguments]


@given(
    channels=st.integers(1, 3), features=st.integers(1, 5), n=st.integers(1, 7), half=st.integers(1, 40),
    block_bytes=st.sampled_from([1, 700, 5000, None]), seed=st.integers(0, 99),
)  # fmt: skip
def test_blocks_give_the_equation_and_its_gradient(channels, features, n, half, block_bytes, seed):
    arguments = state_space(channels, features, n, seed)
    found = dplr_spectrum(*arguments, 2 * half, block_bytes=block_bytes)
    expected = naive_dplr_spectrum(*arguments, 2 * half)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10 * expected.abs().max().item())
    g = torch.Generator().manual_seed(seed)
    grad = torch.randn(found.shape, dtype=torch.complex128, generator=g)
    ours = torch.autograd.grad(found, arguments, grad)
    theirs = torch.autograd.grad(expected, arguments, grad)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9 * other.abs().max().item())


def test_a_training_step_keeps_no_block():
    arguments = state_space(1, 64, 16, dtype=torch.complex64)
    with LiveMemory(*arguments) as memory:
        dplr_spectrum(*arguments, 1024).abs().sum().backward()
    block = 8 * 16 * 513
    spectra = 8 * 64 * 513
    assert memory.peak_dynamic_bytes < 8 * max(block, 2**20) + 6 * spectra
    with LiveMemory(*arguments) as memory:
        naive_dplr_spectrum(*arguments, 1024).abs().sum().backward()
    assert memory.peak_dynamic_bytes > 64 * block


def test_autocast_leaves_it_alone():
    arguments = state_space(2, 3, 4, dtype=torch.complex64)
    plain = dplr_spectrum(*arguments, 16)
    plain_grad = torch.autograd.grad(plain.abs().sum(), arguments)
    with torch.autocast("cpu", torch.bfloat16):
        cast = dplr_spectrum(*arguments, 16)
        cast_grad = torch.autograd.grad(cast.abs().sum(), arguments)
    assert torch.equal(plain, cast)
    assert all(map(torch.equal, plain_grad, cast_grad))


@pytest.mark.parametrize("length", [0, 1, 7])
def test_odd_lengths_are_refused(length):
    with pytest.raises(
        ValueError, match=rf"length={length} must be even .* use {max(2, length + 1)} and crop"
    ):
        dplr_spectrum(*state_space(1, 1, 1), length)
