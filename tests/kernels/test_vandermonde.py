"""Sums of geometric sequences: the split product against every power written out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.kernels.vandermonde import naive_vandermonde, real_vandermonde, vandermonde

SHAPES = dict(
    channels=st.integers(1, 3), features=st.integers(1, 5), n=st.integers(1, 7), length=st.integers(1, 150),
    seed=st.integers(0, 99),
)  # fmt: skip


def complex_case(channels, features, n, seed):
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(channels, features, n, dtype=torch.complex128, generator=g)
    decay = -torch.rand(features, n, dtype=torch.float64, generator=g) * 0.2
    angle = torch.randn(features, n, dtype=torch.float64, generator=g) * 4
    return v.requires_grad_(), torch.complex(decay, angle).requires_grad_()


def real_case(channels, features, n, seed):
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(channels, features, n, dtype=torch.float64, generator=g)
    return v.requires_grad_(), (-torch.rand(features, n, dtype=torch.float64, generator=g)).requires_grad_()


@pytest.mark.parametrize(("fast", "case"), [(vandermonde, complex_case), (real_vandermonde, real_case)])
def test_the_split_product_is_the_sum_of_powers(fast, case):
    @given(**SHAPES)
    def check(channels, features, n, length, seed):
        arguments = case(channels, features, n, seed)
        found, expected = fast(*arguments, length), naive_vandermonde(*arguments, length)
        assert found.shape == (channels, features, length)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
        grad = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for ours, theirs in zip(
            torch.autograd.grad(found, arguments, grad),
            torch.autograd.grad(expected, arguments, grad),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

    check()


def test_long_sequences_keep_their_digits_in_float32():
    # 4096 steps of 0.7 turns: in float32 the angle alone would be off by 1e-3
    v = torch.tensor([1.0 + 0j])
    log_pole = torch.complex(torch.tensor([-1e-4]), torch.tensor([4.4]))
    exact = naive_vandermonde(v.to(torch.complex128), log_pole.to(torch.complex128), 4096)
    assert (vandermonde(v, log_pole, 4096) - exact).abs().max() < 5e-6
    assert (naive_vandermonde(v, log_pole, 4096) - exact).abs().max() > 1e-4


def test_bad_input_is_named():
    v, log_poles = complex_case(1, 2, 3, 0)
    with pytest.raises(ValueError, match="length=0 must be at least 1"):
        vandermonde(v, log_poles, 0)
    with pytest.raises(ValueError, match="coefficients has n=3 and log_poles n=2"):
        vandermonde(v, log_poles[:, :2], 4)
    with pytest.raises(TypeError, match="log_poles is torch.complex128; give a real tensor"):
        real_vandermonde(v.real, log_poles, 4)
    with pytest.raises(TypeError, match="coefficients is torch.float64; give a complex tensor"):
        vandermonde(v.real, log_poles, 4)
