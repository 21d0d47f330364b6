"""A state space over a sequence: both directions, precision, a kept spectrum, stale states."""

import copy

import pytest
import torch

from shoestring.kernels.fft_convolution import naive_convolve
from shoestring.layers.state import Recurrent, state_bytes
from shoestring.layers.state_space.hippo import dplr_legs
from shoestring.layers.state_space.s4_kernel import S4Kernel
from shoestring.layers.state_space.state_space import StateSpace
from shoestring.yardstick.causality import influence


def state_space(*, channels=1, bidirectional=False, d_model=3, d_state=8):
    g = torch.Generator().manual_seed(0)
    kernel = S4Kernel(d_model, dplr_legs(d_state), channels=channels, generator=g)
    return StateSpace(kernel, bidirectional=bidirectional, generator=g)


def noise(*shape, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), **options)


@pytest.mark.parametrize("seq", [2, 7, 31])
@pytest.mark.parametrize("channels", [1, 2])
def test_it_is_the_sum_over_taps(seq, channels):
    layer = state_space(channels=channels).double()
    u = noise(2, seq, 3, dtype=torch.float64)
    taps = layer.kernel(seq)
    expected = naive_convolve(u.transpose(1, 2), taps, skip=layer.skip)
    torch.testing.assert_close(layer(u), expected.flatten(1, 2).transpose(1, 2))


def test_both_directions_are_the_double_sum():
    layer = state_space(channels=4, bidirectional=True).double()
    u = noise(2, 13, 3, dtype=torch.float64)
    taps = layer.kernel(13)
    expected = naive_convolve(u.transpose(1, 2), taps[:2], skip=layer.skip, backward_kernel=taps[2:])
    torch.testing.assert_close(layer(u), expected.flatten(1, 2).transpose(1, 2))


def test_one_direction_never_looks_ahead():
    layer = state_space().double()
    found = influence(lambda x: layer(x[None])[0], noise(9, 3, dtype=torch.float64))
    # a transform leaves rounding errors where a sum over taps has nothing
    assert found.triu(1).max() < 1e-12
    assert found.tril().diagonal().min() > 1e-3
    assert found[:, 0].min() > 1e-3


def test_evaluation_keeps_the_spectrum_and_follows_the_parameters():
    layer = state_space().eval()
    u = noise(1, 20, 3)
    with torch.no_grad():
        first = layer(u)
        assert layer._cache._spectrum is not None
        torch.testing.assert_close(first, layer(u))
        layer.kernel.log_dt += 0.5
        second = layer(u)
        layer._cache.clear()
        torch.testing.assert_close(second, layer(u))
    assert (first - second).abs().max() > 1e-2


def test_it_works_under_autocast():
    layer = state_space()
    u = noise(2, 16, 3)
    plain = layer(u)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(u), plain)
        low = layer(u.bfloat16())
        layer.setup_step()
        y, state = layer.step(u[:, 0].bfloat16(), layer.init_state(2, dtype=torch.bfloat16))
    assert low.dtype == y.dtype == torch.bfloat16
    assert state["x"].dtype == torch.complex64
    assert (low - plain).abs().max() < 0.02 * plain.abs().max()
    assert (y - plain[:, 0]).abs().max() < 0.02 * plain.abs().max()


def test_a_state_does_not_grow():
    layer = state_space(d_state=16)
    assert isinstance(layer, Recurrent)
    layer.setup_step()
    state = layer.init_state(2)
    size = state_bytes(state)
    assert size == 2 * 3 * 16 * 4
    for seq in (1, 5, 200):
        _, state = layer.prefill(noise(2, seq, 3), state)
        assert state_bytes(state) == size


def test_a_state_needs_a_setup_that_is_not_stale():
    layer = state_space()
    for use in (
        lambda: layer.init_state(1),
        lambda: layer.step(noise(1, 3), {}),
        lambda: layer.prefill(noise(1, 4, 3), {}),
    ):
        with pytest.raises(RuntimeError, match=r"call setup_step\(\) first"):
            use()
    layer.setup_step()
    state = layer.init_state(1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(noise(1, 8, 3)).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"the parameters changed since setup_step\(\)"):
        layer.step(noise(1, 3), state)
    layer.setup_step()
    layer.double()
    with pytest.raises(RuntimeError, match=r"call setup_step\(\) first"):
        layer.init_state(1)


def test_a_bidirectional_one_has_no_state():
    layer = state_space(channels=2, bidirectional=True)
    for use in (
        layer.setup_step,
        lambda: layer.init_state(1),
        lambda: layer.step(noise(1, 3), {}),
        lambda: layer.prefill(noise(1, 4, 3), {}),
    ):
        with pytest.raises(ValueError, match="bidirectional state space reads the future"):
            use()
    with pytest.raises(ValueError, match="channels=3 of a bidirectional kernel must be even"):
        state_space(channels=3, bidirectional=True)


def test_a_wrong_width_is_refused():
    layer = state_space()
    layer.setup_step()
    with pytest.raises(ValueError, match="the input has 5 features; this state space has 3"):
        layer(noise(1, 4, 5))
    with pytest.raises(ValueError, match="the input has 5 features; this state space has 3"):
        layer.prefill(noise(1, 4, 5), layer.init_state(1))


def test_a_copy_reads_on_by_itself():
    layer = state_space()
    layer.setup_step()
    other = copy.deepcopy(layer)
    u = noise(1, 6, 3)
    assert torch.equal(layer.prefill(u, layer.init_state(1))[0], other.prefill(u, other.init_state(1))[0])
