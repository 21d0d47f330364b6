import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.kernels.fft_convolution import fft_convolve
from shoestring.layers.long_convolution.learned_butterfly import ButterflyOptions, LearnedButterfly
from shoestring.layers.parameter_hint import hinted_parameters


def _numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=15)
@given(
    seq=st.integers(1, 40) | st.sampled_from([97, 128]),
    shorter=st.integers(0, 5),
    channels=st.sampled_from([1, 3]),
    copies=st.integers(1, 2),
    ahead=st.booleans(),
    per_channel=st.booleans(),
)
def test_at_first_a_convolution(seq, shorter, channels, copies, ahead, per_channel):
    learned = LearnedButterfly(seq, channels, options=ButterflyOptions(per_channel=per_channel)).double()
    u = _numbers(0, 2, channels, max(1, seq - shorter)).requires_grad_()
    kernel = _numbers(1, copies, channels, seq).requires_grad_()
    backward = _numbers(2, copies, channels, seq) if ahead else None
    found, expected = learned(u, kernel, backward), fft_convolve(u, kernel, backward_kernel=backward)
    # The matrices are stored in float32 at first.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    upstream = _numbers(3, *found.shape)
    grads = [torch.autograd.grad((y * upstream).sum(), (u, kernel)) for y in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("which", ["signal", "kernel"])
def test_one_entry_matters_and_learns(which):
    learned = LearnedButterfly(100)
    u, kernel = _numbers(0, 2, 1, 100).float(), _numbers(1, 2, 1, 100).float()
    before = learned(u, kernel)
    torch.testing.assert_close(before, fft_convolve(u, kernel), rtol=1e-4, atol=1e-4)
    matrix = getattr(learned, which).matrix_16
    with torch.no_grad():
        matrix[0, 3, 5, 0] += 0.1
    after = learned(u, kernel)
    assert (after - before).abs().max() > 1e-2
    after.square().sum().backward()
    assert matrix.grad[0, 3, 5].abs().min() > 0


def test_additive():
    u, kernel = _numbers(0, 2, 3, 50).float(), _numbers(1, 1, 3, 50).float()
    learned = LearnedButterfly(50, 3, options=ButterflyOptions(additive=True, dropout=1.0))
    exact = fft_convolve(u, kernel)
    torch.testing.assert_close(learned(u, kernel), exact, rtol=1e-4, atol=1e-4)
    assert (learned.eval()(u, kernel) - exact).abs().max() > 1e-2, "nothing is left out in evaluation"
    none = LearnedButterfly(50, 3, options=ButterflyOptions(additive=True))
    assert none.signal.matrix_16.std().item() == pytest.approx(0.01, rel=0.1)


def test_parameters_are_shared_by_levels_and_have_their_own_rate():
    learned = LearnedButterfly(1024, 4)
    found = {name: (tuple(p.shape), hint.learning_rate) for name, p, hint in hinted_parameters(learned)}
    assert found == {
        f"{which}.matrix_{size}": ((1, size, size, 2), 1e-3)
        for which in ("signal", "kernel")
        for size in (8, 16)
    }


def test_bad_input():
    with pytest.raises(ValueError, match="dropout=1.5 must lie in 0"):
        ButterflyOptions(additive=True, dropout=1.5)
    with pytest.raises(ValueError, match="give additive=True too"):
        ButterflyOptions(dropout=0.1)
    learned = LearnedButterfly(8)
    with pytest.raises(ValueError, match="u has 9 steps; this transform takes up to 8"):
        learned(torch.randn(1, 9), torch.randn(1, 1, 8))
    with pytest.raises(ValueError, match="kernel has 9 steps"):
        learned(torch.randn(1, 8), torch.randn(1, 1, 9))
    with pytest.raises(ValueError, match="u holds NaN or infinity"):
        learned(torch.full((1, 8), float("nan")), torch.randn(1, 1, 8))
