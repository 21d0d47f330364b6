"""The taps of S4D against powers of its dense matrix."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.layers.state_space.discretise import naive_taps
from shoestring.layers.state_space.hippo import diagonal_legs, diagonal_linear, dplr_legs
from shoestring.layers.state_space.s4d_kernel import S4DKernel


@given(
    half=st.integers(1, 6), length=st.integers(1, 90), channels=st.integers(1, 2), copies=st.sampled_from([1,
    3]), rate=st.sampled_from([1.0, 0.5, 3.0]), seed=st.integers(0, 9),
)  # fmt: skip
def test_taps_are_powers_of_the_matrix(half, length, channels, copies, rate, seed):
    g = torch.Generator().manual_seed(seed)
    made = S4DKernel(3, diagonal_linear(2 * half), channels=channels, n_ssm=copies, generator=g).double()
    taps = made(length, rate)
    with torch.no_grad():
        made.log_dt += torch.tensor(rate).double().log()
    torch.testing.assert_close(taps, naive_taps(made.discrete_system(), length), rtol=1e-9, atol=1e-11)


def test_small_steps_keep_their_digits_in_float32():
    made = S4DKernel(
        3, diagonal_legs(64), dt_min=1e-6, dt_max=2e-6, generator=torch.Generator().manual_seed(0)
    )
    expected = naive_taps(made.discrete_system(), 64)
    assert ((made(64) - expected).norm() / expected.norm()) < 2e-6


def test_what_is_refused():
    with pytest.raises(ValueError, match="a diagonal kernel has no low rank part"):
        S4DKernel(3, dplr_legs(8))
    made = S4DKernel(3, diagonal_legs(8))
    with pytest.raises(ValueError, match="length=0 must be at least 1"):
        made(0)
    with pytest.raises(ValueError, match="rate=-1.0 must be above 0"):
        made(4, rate=-1.0)
    with pytest.raises(ValueError, match="mode='linear'; a diagonal state space has 'dense', 'diagonal'"):
        made.recurrence("linear")
