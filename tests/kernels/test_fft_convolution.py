import contextlib
import subprocess
import sys
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from shoestring.kernels import fft_convolution_compiled
from shoestring.kernels.fft_convolution import fft_convolve, kernel_spectrum, naive_convolve
from shoestring.yardstick.causality import leaks


def by_torch():
    """Inside of it torch's transforms answer, not the compiled loop."""
    return mock.patch.object(fft_convolution_compiled, "why_not", return_value="a test")


PATHS = [contextlib.nullcontext, by_torch]
LENGTHS = st.integers(1, 40) | st.sampled_from([53, 64, 97, 131])


def _numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("seq", [1, 2, 7, 100, 257, 1024])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("path", PATHS)
def test_equals_conv1d(path, seq, dtype, tolerance):
    u, kernel = _numbers(0, 3, 5, seq, dtype=dtype), _numbers(1, 5, seq, dtype=dtype)
    expected = F.conv1d(F.pad(u, (seq - 1, 0)), kernel.flip(-1)[:, None], groups=5)
    with path():
        error = (fft_convolve(u, kernel) - expected).norm() / expected.norm()
    assert error < tolerance


@given(
    seed=st.integers(0, 99),
    seq=LENGTHS,
    lags=LENGTHS,
    channels=st.sampled_from([1, 3]),
    copies=st.sampled_from([(), (1,), (2,)]),
    batch=st.sampled_from([(), (2,), (2, 3)]),
    ahead=st.none() | LENGTHS,
    extras=st.booleans(),
    path=st.sampled_from(PATHS),
)
def test_equals_the_sums_forward_and_gradient(path, seed, seq, lags, channels, copies, batch, ahead, extras):
    u, kernel = _numbers(seed, *batch, channels, seq), _numbers(seed + 1, *copies, channels, lags)
    inputs = {"u": u, "kernel": kernel}
    if ahead:
        inputs["backward_kernel"] = _numbers(seed + 2, *copies, channels, ahead)
    if extras:
        inputs["skip"] = _numbers(seed + 3, *copies, channels)
        inputs["gate"] = _numbers(seed + 4, *u.shape)
    results = []
    for convolve in (fft_convolve, naive_convolve):
        leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
        with path():
            y = convolve(**leaves)
        assert y.shape == (*batch, *copies, channels, seq)
        (y * _numbers(seed + 5, *y.shape)).sum().backward()
        results.append([y, *(leaf.grad for leaf in leaves.values())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@given(
    seed=st.integers(0, 99),
    seq=LENGTHS,
    shorter=st.integers(0, 7),
    ahead=st.booleans(),
    path=st.sampled_from(PATHS),
)
def test_a_spectrum_serves_every_shorter_sequence(path, seed, seq, shorter, ahead):
    kernel, backward = _numbers(seed, 2, 3, seq), _numbers(seed + 1, 2, 3, seq) if ahead else None
    u = _numbers(seed + 2, 4, 3, max(1, seq - shorter)).requires_grad_()
    with path():
        y = fft_convolve(u, kernel_spectrum(kernel, seq, backward_kernel=backward))
    expected = naive_convolve(u, kernel, backward_kernel=backward)
    torch.testing.assert_close(y, expected)
    upstream = _numbers(seed + 3, *y.shape)
    found, wanted = (torch.autograd.grad((each * upstream).sum(), u)[0] for each in (y, expected))
    torch.testing.assert_close(found, wanted)


def test_causal_up_to_rounding():
    """A transform mixes all steps, so the gradient of an earlier output is rounding error instead of 0."""
    kernel, u = _numbers(0, 1, 9), _numbers(1, 9, 1)

    def rounded(u: torch.Tensor) -> torch.Tensor:
        return fft_convolve(u.T, kernel).T

    grads = torch.autograd.functional.jacobian(rounded, u)[:, 0, :, 0]
    assert grads.triu(1).abs().max() < 1e-14
    torch.testing.assert_close(grads.tril().diagonal(), kernel[0, 0].expand(9))
    assert not leaks(lambda u: naive_convolve(u.T, kernel).T, u).any()


def test_bidirectional_flip():
    """Reversed time, with k0' = (k0[0], k1[0], k1[1], …) and k1' = k0[1:], reverses the output."""
    seq = 23
    k0, k1, u = _numbers(0, 3, seq), _numbers(1, 3, seq), _numbers(2, 2, 3, seq)
    y = fft_convolve(u, k0, backward_kernel=k1)
    turned0, turned1 = torch.cat([k0[:, :1], k1], dim=-1), k0[:, 1:]
    flipped = fft_convolve(u.flip(-1), turned0, backward_kernel=turned1)
    torch.testing.assert_close(flipped, y.flip(-1))
    one = torch.zeros(1, 1, seq, dtype=u.dtype)
    one[..., 5] = 1
    response = fft_convolve(one, torch.zeros(1, 3, dtype=u.dtype), backward_kernel=_numbers(3, 1, 3))
    assert response[0, 0].abs().gt(1e-12).nonzero().flatten().tolist() == [2, 3, 4], "starts one step ahead"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    u, kernel = _numbers(0, 2, 3, 50).to(dtype), _numbers(1, 3, 50).to(dtype)
    y = fft_convolve(u, kernel)
    assert y.dtype == dtype
    torch.testing.assert_close(y, naive_convolve(u.double(), kernel.double()).to(dtype), rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_compiles_whole():
    """In a process of its own: shapes that are checked at run time, as in tests, cannot be traced."""
    script = """
import torch
from shoestring.kernels.fft_convolution import fft_convolve, naive_convolve
u, kernel = torch.randn(2, 3, 20), torch.randn(3, 20).requires_grad_()
y = torch.compile(fft_convolve, backend="aot_eager", fullgraph=True)(u, kernel)
expected = naive_convolve(u, kernel)
torch.testing.assert_close(y, expected)
grads = [torch.autograd.grad(each.square().sum(), kernel)[0] for each in (y, expected)]
torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_bad_input():
    u, kernel = torch.randn(2, 3, 8), torch.randn(3, 8)
    with pytest.raises(TypeError, match=r"u is torch.int64; give real floating-point numbers, e.g. u.float"):
        fft_convolve(u.long(), kernel)
    with pytest.raises(TypeError, match="kernel is torch.complex64"):
        fft_convolve(u, kernel + 0j)
    with pytest.raises(ValueError, match="kernel has 2 channels, u has 3"):
        fft_convolve(u, kernel[:2])
    with pytest.raises(ValueError, match="kernel has 2 channels, u has 3"):
        fft_convolve(u, kernel_spectrum(kernel[:2], 8))
    with pytest.raises(ValueError, match=r"kernel has shape \(8,\); it must be \(channels, lags\) or"):
        fft_convolve(u, kernel[0])
    with pytest.raises(ValueError, match="nothing empty"):
        fft_convolve(u[..., :0], kernel)
    with pytest.raises(ValueError, match=r"skip has shape \(2,\); this kernel needs \(3,\)"):
        fft_convolve(u, kernel, skip=torch.ones(2))
    with pytest.raises(ValueError, match="gate has shape"):
        fft_convolve(u, kernel, gate=u[..., :4])
    with pytest.raises(ValueError, match="backward_kernel has shape"):
        fft_convolve(u, kernel, backward_kernel=kernel[None])
    with pytest.raises(ValueError, match=r"8 steps, but the spectrum is for up to 7; .*\(kernel, 8\)"):
        fft_convolve(u, kernel_spectrum(kernel, 7))
    with pytest.raises(ValueError, match="part of a spectrum already"):
        fft_convolve(u, kernel_spectrum(kernel, 8), backward_kernel=kernel)
    for bad in (float("nan"), float("inf")):
        spoiled = u.clone()
        spoiled[1, 2, 5] = bad
        with pytest.raises(ValueError, match="u holds NaN or infinity"):
            fft_convolve(spoiled, kernel)
