"""The taps of S4: against powers of the dense matrix, longer, resampled, and what is refused."""

import copy

import pytest
import torch
from torch import nn

from shoestring.layers.state_space.discretise import naive_taps
from shoestring.layers.state_space.hippo import dplr_legs, random_dplr
from shoestring.layers.state_space.s4_kernel import S4Kernel


def kernel(d_state=8, d_model=4, *, trained=False, **options):
    g = torch.Generator().manual_seed(0)
    made = S4Kernel(d_model, dplr_legs(d_state), generator=g, **options)
    if trained:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=g) * parameter.abs()
    return made


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("length", [2, 16, 1000, 4096])
@pytest.mark.parametrize("d_state", [2, 4, 64])
def test_taps_are_powers_of_the_matrix(d_state, length, trained):
    single = kernel(d_state, 2, trained=trained)
    double = copy.deepcopy(single).double()
    with torch.no_grad():
        for made, bound in ((double, 1e-10), (single, 1e-5)):
            taps = made(length)
            expected = naive_taps(made.discrete_system(), length)
            assert taps.dtype == made.log_dt.dtype
            assert ((taps - expected).norm(dim=-1) / expected.norm(dim=-1)).max() < bound


def test_the_first_use_does_not_change_c():
    made = kernel(trained=True).double()
    before = made.discrete_system()
    made(50)
    assert made.length == 50
    torch.testing.assert_close(made.discrete_system().c, before.c, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("n_ssm", [1, 2, 4])
def test_features_share_their_matrix(n_ssm):
    made = kernel(n_ssm=n_ssm, trained=True)
    system = made.discrete_system()
    assert made.im.shape == (n_ssm, 4)
    for h in range(4):
        same = torch.equal(made.poles[h], made.poles[h % n_ssm])
        assert same
    taps = made(16)
    torch.testing.assert_close(taps.double(), naive_taps(system, 16), rtol=1e-4, atol=1e-6)
    taps.sum().backward()
    assert made.im.grad.abs().min() > 0


@pytest.mark.parametrize("length", [7, 16])
def test_a_longer_kernel_starts_with_the_shorter_one(length):
    made = kernel(64, trained=True)
    with torch.no_grad():
        short = made(length)
        long = made(4 * length)
        assert made.length >= 4 * length
        assert long.shape == (1, 4, 4 * length)
        assert (long[..., :length] - short).abs().max() < 1e-6 * short.abs().max()
        again = made(length)
        assert (again - short).abs().max() < 1e-6 * short.abs().max()


def test_half_the_step_gives_half_the_taps():
    made = kernel(8, dt_min=0.02, dt_max=0.025)  # dt times the largest imaginary part, 20, is at most 0.5
    assert (made.step[:, None] * made.poles.imag).max() <= 0.5
    with torch.no_grad():
        coarse = made(400)
        fine = made(800, rate=0.5)
    pairs = fine[..., ::2] + fine[..., 1::2]
    assert (coarse - pairs).norm() / coarse.norm() < 0.02
    with torch.no_grad():
        assert made(200, rate=2.0).shape == (1, 4, 200)


def test_resampling_works_before_the_first_use_too():
    made = kernel(8)
    with torch.no_grad():
        fine = made(33, rate=0.5)
        again = made(33, rate=0.5)
    assert fine.shape == (1, 4, 33)
    torch.testing.assert_close(fine, again)


def test_a_loaded_kernel_is_the_saved_one():
    made = kernel(trained=True)
    taps = made(20)
    other = kernel()
    other.load_state_dict(made.state_dict())
    assert other.length == 20
    assert torch.equal(other(20), taps)


def test_what_is_refused():
    with pytest.raises(ValueError, match="n_ssm=3 does not divide d_model=4"):
        kernel(n_ssm=3)
    for bounds in ({"dt_min": 0.1, "dt_max": 0.1}, {"dt_min": 0.0}):
        with pytest.raises(ValueError, match="must satisfy 0 < dt_min < dt_max"):
            kernel(**bounds)
    with pytest.raises(ValueError, match="channels=0 must be at least 1"):
        kernel(channels=0)
    with pytest.raises(ValueError, match="length=1 must be at least 2"):
        kernel()(1)
    with pytest.raises(ValueError, match="length=1 must be at least 2"):
        kernel().set_length(1)
    with pytest.raises(ValueError, match="rate=0.0 must be above 0"):
        kernel()(8, rate=0.0)
    with pytest.raises(ValueError, match="mode='fast'; use one of 'dense', 'linear', 'diagonal'"):
        kernel().recurrence("fast")


def test_frozen_kernels_do_not_grow():
    made = kernel().requires_grad_(False)
    with pytest.raises(ValueError, match=r"length=9 is above the internal length 0 .* call set_length\(9\)"):
        made(9)
    made.set_length(9)
    assert made(10).shape[-1] == 10  # the next even length
    with pytest.raises(ValueError, match="length=11 is above the internal length 10"):
        made(11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    made = kernel().to(dtype)
    for use in (lambda: made(8), lambda: made.set_length(8), lambda: made.recurrence("linear")):
        with pytest.raises(
            ValueError, match=f"log_dt of the state space is {dtype}; it must stay in float32"
        ):
            use()


@pytest.mark.parametrize("value", [-torch.inf, torch.nan, -200.0])
def test_unstable_poles_are_refused_when_loaded(value):
    state = kernel().state_dict()
    state["log_re"] = state["log_re"].clone()
    state["log_re"][0, 1] = value
    with pytest.raises(ValueError, match="the loaded state space has a pole"):
        nn.ModuleList([kernel()]).load_state_dict({f"0.{name}": tensor for name, tensor in state.items()})


def test_the_control_is_another_matrix():
    made = S4Kernel(2, random_dplr(8, torch.Generator().manual_seed(0)))
    taps = made(32).double()
    torch.testing.assert_close(taps, naive_taps(made.discrete_system(), 32), rtol=1e-4, atol=1e-5)
