"""The spectrum of a diagonal plus low rank state space, block by block, against the equation."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.errors import NoCompiler
from shoestring.kernels import cauchy_compiled
from shoestring.kernels.cauchy import dplr_spectrum, naive_dplr_spectrum
from shoestring.kernels.cauchy_torch import blocked_spectrum
from shoestring.notices import record_fallbacks
from shoestring.yardstick.flops import CostCounter
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


sizes = {
    "channels": st.integers(1, 3), "features": st.integers(1, 5), "n": st.integers(1, 7),
    "half": st.integers(1, 40), "seed": st.integers(0, 99),
}  # fmt: skip


@given(**sizes)
def test_the_compiled_loop_gives_the_equation_and_its_gradient(channels, features, n, half, seed):
    check(dplr_spectrum, state_space(channels, features, n, seed), 2 * half, seed)


@given(**sizes, block_bytes=st.sampled_from([1, 700, 5000, None]))
def test_blocks_give_the_equation_and_its_gradient(channels, features, n, half, block_bytes, seed):
    spectrum = partial(blocked_spectrum, block_bytes=block_bytes)
    check(spectrum, state_space(channels, features, n, seed), 2 * half, seed)


def test_many_frequencies_and_poles():
    """More than a block of the compiled backward pass, and no whole number of them."""
    check(dplr_spectrum, state_space(2, 3, 33), 1030, 1)


def check(spectrum, arguments, length, seed):
    found = spectrum(*arguments, length)
    expected = naive_dplr_spectrum(*arguments, length)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10 * expected.abs().max().item())
    g = torch.Generator().manual_seed(seed)
    grad = torch.randn(found.shape, dtype=torch.complex128, generator=g)
    ours = torch.autograd.grad(found, arguments, grad)
    theirs = torch.autograd.grad(expected, arguments, grad)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9 * other.abs().max().item())


def test_single_precision_is_that_of_the_equation_in_double():
    single = state_space(2, 4, 9, dtype=torch.complex64)
    double = [x.detach().to(torch.promote_types(x.dtype, torch.float64)) for x in single]
    double = [x.requires_grad_() for x in double]
    found, expected = dplr_spectrum(*single, 250), naive_dplr_spectrum(*double, 250)
    assert found.dtype == torch.complex64
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-6, atol=1e-6)
    grads = [torch.autograd.grad(x.abs().square().sum(), y) for x, y in ((found, single), (expected, double))]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other.to(one.dtype), rtol=1e-5, atol=1e-5 * other.abs().max().item())


def test_threads_change_no_bit():
    arguments = state_space(1, 7, 5)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            spectrum = dplr_spectrum(*arguments, 66)
            found.append((spectrum, *torch.autograd.grad(spectrum.abs().sum(), arguments)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for other in found[1:] for x, y in zip(found[0], other, strict=True))


def test_without_a_compiler_torch_answers_and_says_so(monkeypatch):
    def missing():
        raise NoCompiler("none")

    arguments = state_space(1, 2, 3)
    expected = dplr_spectrum(*arguments, 10)
    monkeypatch.setattr(cauchy_compiled, "library", missing)
    with record_fallbacks() as said:
        found = dplr_spectrum(*arguments, 10)
    assert "torch sums blocks instead of the compiled loop (none)" in said[0]
    torch.testing.assert_close(found, expected)


def test_a_training_step_keeps_no_block():
    arguments = state_space(1, 64, 16, dtype=torch.complex64)
    block = 8 * 16 * 513
    spectra = 8 * 64 * 513
    for spectrum, blocks in ((dplr_spectrum, 0), (blocked_spectrum, 8 * max(block, 2**19))):
        with LiveMemory(*arguments) as memory:
            spectrum(*arguments, 1024).abs().sum().backward()
        assert memory.peak_dynamic_bytes < blocks + 6 * spectra
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


def test_cost():
    output, vector = torch.ones(2, 3, 5, dtype=torch.complex64), torch.ones(3, 5, dtype=torch.complex64)
    with CostCounter() as counter:
        dplr_spectrum(output, -vector, vector, vector, torch.ones(3), 8)
    # 2 x 3 spectra of 5 frequencies, 5 poles each; 30 + 3 x 15 complex numbers and 3 floats in, 30 out
    assert counter.stated_flops == 39 * 2 * 3 * 5 * 5
    assert counter.bytes_by_operation["dplr_spectrum"] == 8 * (30 + 45 + 30) + 4 * 3
