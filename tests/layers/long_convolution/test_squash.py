import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.layers.long_convolution.squash import (
    KernelRegulariser,
    SmoothFrequency,
    SmoothTime,
    geometric_kernel,
    naive_squash,
    random_kernel,
    spectral_roughness,
    squash,
)


def _numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@given(threshold=st.floats(0, 2), shape=st.sampled_from([(1, 1), (3, 7), (2, 5, 11)]))
def test_squash_is_its_equation_and_its_gradient_is_0_or_1(threshold, shape):
    kernel = _numbers(*shape).requires_grad_()
    found, expected = squash(kernel, threshold), naive_squash(kernel, threshold)
    assert torch.equal(found, expected)
    assert (found.abs() <= (kernel.abs() - threshold).clamp(min=0)).all()
    (grad,) = torch.autograd.grad(found.sum(), kernel)
    assert torch.equal(grad, (kernel.abs() > threshold).double())


def test_no_threshold_is_the_identity():
    kernel = _numbers(3, 9)
    assert torch.equal(squash(kernel, 0.0), kernel)


@pytest.mark.parametrize(("threshold", "percent"), [(0.001, 62), (0.002, 32), (0.003, 13), (0.004, 4.6)])
def test_share_of_random_taps_that_survive(threshold, percent):
    kernel = random_kernel((2, 64, 1024), torch.Generator().manual_seed(0))
    survivors = 100 * squash(kernel, threshold).ne(0).double().mean()
    assert abs(survivors - percent) < 1


def test_smoothing_in_time_counts_the_padding():
    kernel = _numbers(2, 3, 20)
    padded = torch.nn.functional.pad(kernel, (3, 3))
    expected = torch.stack([padded[..., i : i + 7].mean(-1) for i in range(20)], dim=-1)
    torch.testing.assert_close(SmoothTime(7)(kernel), expected)
    assert torch.equal(SmoothTime(1)(kernel), kernel)


@pytest.mark.parametrize("lags", [8, 15])
def test_smoothing_in_frequency(lags):
    kernel = _numbers(2, lags)
    spectrum = torch.fft.rfft(kernel)
    smooth = torch.zeros_like(spectrum)
    for i in range(5):
        for f in range(spectrum.shape[-1]):
            if 0 <= f + i - 2 < spectrum.shape[-1]:
                smooth[:, f] += math.exp(-0.5 * (i - 2) ** 2) * spectrum[:, f + i - 2]
    torch.testing.assert_close(SmoothFrequency(5)(kernel), torch.fft.irfft(smooth, lags))


def test_order_smooth_then_squash_then_dropout():
    kernel = _numbers(1, 4, 500).requires_grad_()
    regulariser = KernelRegulariser(threshold=0.3, dropout=0.25, smooth=SmoothTime(3))
    expected = naive_squash(SmoothTime(3)(kernel), 0.3)
    assert torch.equal(regulariser(kernel, training=False), expected), "no dropout in evaluation"
    torch.manual_seed(0)
    found = regulariser(kernel, training=True)
    dropped = (found == 0) & (expected != 0)
    share = dropped.double().sum() / (expected != 0).double().sum()
    assert abs(share - 0.25) < 0.05
    torch.testing.assert_close(found[~dropped], expected[~dropped] / 0.75)


def test_initial_values():
    assert abs(random_kernel((2, 64, 512)).std() / 0.002 - 1) < 0.02
    kernel = geometric_kernel((400, 8, 6), torch.Generator().manual_seed(1)).double()
    i, j = torch.arange(8)[:, None], torch.arange(6)
    expected = 0.02 * torch.exp(-(j / 6) * 4 ** (i / 8))
    assert (kernel.std(0) / expected - 1).abs().max() < 0.15


def test_roughness():
    smooth, rough = torch.zeros(1, 32), torch.zeros(1, 32)
    smooth[0, 0], rough[0, 31] = 1, 1
    assert spectral_roughness(smooth) < 1e-12
    step = abs(1 - complex(math.cos(2 * math.pi * 31 / 64), math.sin(2 * math.pi * 31 / 64)))
    assert spectral_roughness(rough) == pytest.approx(step * math.sqrt(32 / 33))


def test_bad_input():
    with pytest.raises(ValueError, match="threshold=-1.0 must not be below 0"):
        squash(torch.ones(1, 2), -1.0)
    with pytest.raises(ValueError, match="threshold=-1.0 must not be below 0"):
        KernelRegulariser(threshold=-1.0)
    with pytest.raises(ValueError, match="dropout=1.0 must lie in 0"):
        KernelRegulariser(dropout=1.0)
    for window in (0, 4):
        with pytest.raises(ValueError, match=f"window={window} must be odd"):
            SmoothTime(window)
        with pytest.raises(ValueError, match=f"window={window} must be odd"):
            SmoothFrequency(window)
    with pytest.raises(ValueError, match=r"threshold=0.1 leaves nothing of a kernel .* 0.05; .* smaller"):
        KernelRegulariser(threshold=0.1)(torch.full((1, 1, 4), 0.05), training=True)
