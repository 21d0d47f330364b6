from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.errors import NoCompiler
from shoestring.kernels import fft_convolution_compiled as compiled
from shoestring.kernels.fft_convolution import fft_convolve, kernel_spectrum, naive_convolve
from shoestring.notices import record_fallbacks
from shoestring.yardstick.flops import CostCounter

LAYOUTS = ("steps", "features", "neither")


def numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same numbers with steps beside each other, features, or only every other step."""
    if layout == "features":
        return x.mT.contiguous().mT
    return x if layout == "steps" else x.repeat_interleave(2, -1)[..., ::2]


def by_torch():
    """Inside of it torch's transforms answer."""
    return mock.patch.object(compiled, "why_not", return_value="a test")


def gradients(y, inputs, upstream):
    return torch.autograd.grad((y * upstream).sum(), inputs)


@given(
    seed=st.integers(0, 99),
    seq=st.integers(1, 40) | st.sampled_from([131, 257, 521]),
    lags=st.integers(1, 40) | st.sampled_from([131, 257, 521]),
    channels=st.sampled_from([1, 2, 17]),
    copies=st.sampled_from([1, 3]),
    batch=st.sampled_from([1, 2]),
    ahead=st.none() | st.integers(1, 40),
    layout=st.sampled_from(LAYOUTS),
    upstream_layout=st.sampled_from(LAYOUTS),
)
def test_equals_the_sums_in_every_layout(
    seed, seq, lags, channels, copies, batch, ahead, layout, upstream_layout
):
    u = laid_out(numbers(seed, batch, channels, seq), layout).requires_grad_()
    kernel, skip = numbers(seed + 1, copies, channels, lags), numbers(seed + 2, copies, channels)
    leaves = {"kernel": kernel.requires_grad_(), "skip": skip.requires_grad_()}
    if ahead:
        leaves["backward_kernel"] = numbers(seed + 3, copies, channels, ahead).requires_grad_()
    upstream = laid_out(numbers(seed + 4, batch, copies, channels, seq), upstream_layout)
    found, expected = (convolve(u, **leaves) for convolve in (fft_convolve, naive_convolve))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    inputs = (u, *leaves.values())
    for a, b in zip(gradients(found, inputs, upstream), gradients(expected, inputs, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("top", "height"),
    [(top, 256) for top in (*compiled.SHORT_TOPS, *compiled.TOPS)]
    + [(top, height) for top in compiled.TOPS for height in (1024, 4096)],
)
def test_every_first_pass_and_depth(top, height):
    seq = top * height - 3
    with mock.patch.object(compiled, "_shape", return_value=(top, height)):
        u, kernel = numbers(0, 1, 2, seq).requires_grad_(), numbers(1, 2, seq).requires_grad_()
        found = fft_convolve(u, kernel)
        upstream = numbers(2, *found.shape)
        found_grads = gradients(found, (u, kernel), upstream)
    with by_torch():
        expected = fft_convolve(u, kernel)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        for a, b in zip(found_grads, gradients(expected, (u, kernel), upstream), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@given(st.integers(1, 1 << 18))
def test_a_period_is_long_enough_and_not_much_longer(steps):
    n = compiled.period(steps)
    assert n >= steps
    assert n == 512 or n <= 2 * (steps - 1) or n < 1.3 * steps + 2
    assert compiled.period(n) == n


@pytest.mark.parametrize("seq", [100, 1000, 8192])
def test_as_exact_as_torch(seq):
    u, kernel = numbers(0, 2, 8, seq), numbers(1, 8, seq)
    with by_torch():
        exact = fft_convolve(u, kernel)
        theirs = (fft_convolve(u.float(), kernel.float()) - exact).norm()
    ours = (fft_convolve(u.float(), kernel.float()) - exact).norm()
    assert ours < 1.5 * theirs


@pytest.mark.parametrize("layout", ["steps", "features"])
def test_threads_change_no_bit(layout):
    u = laid_out(numbers(0, 2, 37, 600, dtype=torch.float32), layout).requires_grad_()
    kernel = numbers(1, 2, 37, 600, dtype=torch.float32).requires_grad_()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = fft_convolve(u, kernel)
            found.append((y, *torch.autograd.grad(y.square().sum(), (u, kernel))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for other in found[1:] for x, y in zip(found[0], other, strict=True))


def test_lies_in_memory_as_the_signal_does():
    x = numbers(0, 2, 50, 6)
    y = fft_convolve(x.mT, numbers(1, 3, 6, 50))
    assert y.flatten(1, 2).mT.is_contiguous()
    assert fft_convolve(x.mT.contiguous(), numbers(1, 6, 50)).is_contiguous()


@pytest.mark.parametrize("copies", [(), (2,)])
def test_gradients_of_some_inputs_alone(copies):
    inputs = [numbers(0, 2, 3, 20), numbers(1, *copies, 3, 20), numbers(2, *copies, 3)]
    upstream = numbers(3, 2, *copies, 3, 20)
    for chosen in range(3):
        leaf = inputs[chosen].clone().requires_grad_()
        u, kernel, skip = (leaf if i == chosen else x for i, x in enumerate(inputs))
        (found,), (expected,) = (
            gradients(convolve(u, kernel, skip=skip), (leaf,), upstream)
            for convolve in (fft_convolve, naive_convolve)
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layout", ["steps", "features"])
def test_a_spectrum_with_a_skip(layout):
    u, kernel, skip = laid_out(numbers(0, 2, 3, 20), layout), numbers(1, 2, 3, 20), numbers(2, 2, 3)
    leaves = u.requires_grad_(), skip.requires_grad_()
    found = fft_convolve(u, kernel_spectrum(kernel, 30), skip=skip)
    expected = naive_convolve(u, kernel, skip=skip)
    torch.testing.assert_close(found, expected)
    upstream = numbers(3, *found.shape)
    for a, b in zip(gradients(found, leaves, upstream), gradients(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(a, b)
    mixed = fft_convolve(u.float(), kernel_spectrum(kernel, 20), skip=skip)
    assert mixed.dtype == torch.float32


@pytest.mark.parametrize("layout", ["steps", "features"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_what_is_not_finite_is_refused(layout, bad):
    u = laid_out(numbers(0, 2, 19, 300, dtype=torch.float32), layout).clone(
        memory_format=torch.preserve_format
    )
    u[1, 18, 7] = u[1, 18, 8] = bad
    with pytest.raises(ValueError, match="u holds NaN or infinity, or overflows"):
        fft_convolve(u, torch.ones(19, 5))


def test_where_torch_answers_it_is_said(monkeypatch):
    u, kernel = numbers(0, 1, 1, (1 << 17) + 1), numbers(1, 1, (1 << 17) + 1)
    with record_fallbacks() as said:
        fft_convolve(u, kernel)
    assert "fft_convolve: torch's transforms answer for 262145 steps" in said[0]

    def missing(dtype):
        raise NoCompiler("none")

    u, kernel = u[..., :30], kernel[..., :30]
    expected = fft_convolve(u, kernel, skip=torch.ones(1))
    monkeypatch.setattr(compiled, "library", missing)
    with record_fallbacks() as said:
        found = fft_convolve(u, kernel, skip=torch.ones(1))
        from_spectrum = fft_convolve(u, kernel_spectrum(kernel, 30), skip=torch.ones(1))
    assert "torch's transforms answer instead of the compiled loop (none)" in said[0]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(from_spectrum, expected)


def test_a_compiled_spectrum_is_for_the_cpu():
    spectrum = kernel_spectrum(numbers(0, 3, 8), 8)
    with pytest.raises(ValueError, match="u is on meta, the spectrum is for the CPU; make it anew there"):
        fft_convolve(torch.empty(3, 8, device="meta"), spectrum)


def test_it_states_transforms_and_products():
    u, kernel = numbers(0, 2, 3, 200).requires_grad_(), numbers(1, 4, 3, 200).requires_grad_()
    n = compiled.period(399)
    with CostCounter() as forward:
        y = fft_convolve(u, kernel)
    rows, kernels = 2 * 3, 4 * 3
    assert forward.flops_by_operation["fft_convolution_forward"] == (
        compiled.transform_flops(rows + kernels + 4 * rows, n) + 6 * (n // 2) * 4 * rows
    )
    with CostCounter() as backward:
        y.backward(torch.ones_like(y))
    assert backward.flops_by_operation["fft_convolution_backward"] == (
        compiled.transform_flops(4 * rows + 2 * (rows + kernels), n) + 2 * 8 * (n // 2) * 4 * rows
    )
    assert forward.bytes >= u.nbytes + kernel.nbytes + y.nbytes
