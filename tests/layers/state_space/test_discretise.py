"""Discretisation and the recurrence, against SciPy, and the truncated C."""

import numpy as np
import pytest
import torch
from scipy.signal import cont2discrete, dlsim

from shoestring.layers.state_space.discretise import (
    DenseSystem,
    as_output,
    bilinear,
    dense_system,
    doubled,
    naive_recurrence,
    naive_taps,
    truncated,
    untruncated,
    zero_order_hold,
)


def random_parts(features=3, half=4, channels=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    poles = torch.complex(
        -0.1 - torch.rand(features, half, dtype=torch.float64, generator=g),
        5 * torch.randn(features, half, dtype=torch.float64, generator=g),
    )
    p, b = torch.randn(2, features, half, dtype=torch.complex128, generator=g)
    c = torch.randn(channels, features, half, dtype=torch.complex128, generator=g)
    step = 0.02 + 0.2 * torch.rand(features, dtype=torch.float64, generator=g)
    return poles, p, b, c, step


def arrays(system, feature, channel):
    a, b, c = system.a[feature], system.b[feature, :, None], system.c[channel, feature, None]
    return a.numpy(), b.numpy(), c.numpy(), np.zeros((1, 1))


def test_real_coordinates_are_the_complex_system():
    poles, p, b, c, _ = random_parts()
    system = dense_system(poles, p, b, c)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(poles.shape, dtype=torch.complex128, generator=g)
    moved = poles * x - p * 2 * (p.conj() * x).sum(-1, keepdim=True).real
    real = torch.cat([x.real, x.imag], dim=-1)
    torch.testing.assert_close(
        (system.a @ real.unsqueeze(-1)).squeeze(-1), torch.cat([moved.real, moved.imag], dim=-1)
    )
    torch.testing.assert_close((system.c * real).sum(-1), 2 * (c * x).sum(-1).real)
    torch.testing.assert_close(as_output(system.c), c)


@pytest.mark.parametrize(("rule", "name"), [(bilinear, "bilinear"), (zero_order_hold, "zoh")])
def test_rules_are_those_of_scipy(rule, name):
    poles, p, b, c, step = random_parts()
    system = dense_system(poles, p, b, c)
    found = rule(system, step)
    for h in range(len(step)):
        a_d, b_d, *_ = cont2discrete(arrays(system, h, 0), step[h].item(), name)
        np.testing.assert_allclose(found.a[h], a_d, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(found.b[h], b_d[:, 0], rtol=1e-10, atol=1e-12)


def test_outputs_are_those_of_scipy():
    poles, p, b, c, step = random_parts()
    system = dense_system(poles, p, b, c)
    u = torch.randn(1, 200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours = naive_recurrence(bilinear(system, step), u)
    for h in range(3):
        for channel in range(2):
            dt = step[h].item()
            a_d, b_d, c_d, d_d, _ = cont2discrete(arrays(system, h, channel), dt, "bilinear")
            cont_c = system.c[channel, h, None].numpy()
            signal = u[0, :, h].numpy()
            # the state of dlsim lags by one step
            _, y, _ = dlsim((a_d, b_d, cont_c @ a_d, cont_c @ b_d, dt), signal)
            found = ours[0, :, channel, h].numpy()
            np.testing.assert_allclose(found, y[:, 0], rtol=0, atol=1e-12 * np.abs(y).max())
            # Tustin's own output is the mean of two of ours
            _, tustin, _ = dlsim((a_d, b_d, c_d, d_d, dt), signal)
            mean = (found + np.concatenate([[0.0], found[:-1]])) / 2
            np.testing.assert_allclose(mean, tustin[:, 0], rtol=0, atol=1e-12 * np.abs(y).max())


def test_taps_are_the_answer_to_an_impulse():
    poles, p, b, c, step = random_parts()
    discrete = bilinear(dense_system(poles, p, b, c), step)
    impulse = torch.zeros(1, 40, 3, dtype=torch.float64)
    impulse[:, 0] = 1
    torch.testing.assert_close(
        naive_recurrence(discrete, impulse)[0].permute(1, 2, 0), naive_taps(discrete, 40)
    )


def test_truncation_is_undone_and_doubled():
    poles, p, b, c, step = random_parts()
    discrete = bilinear(dense_system(poles, p, b, c), step)
    short = DenseSystem(discrete.a, discrete.b, truncated(discrete, 20))
    torch.testing.assert_close(untruncated(short, 20), discrete.c, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(doubled(short, 20), truncated(discrete, 40), rtol=1e-10, atol=1e-12)


def test_what_the_truncated_c_would_lose_is_refused():
    poles, p, b, c, step = random_parts()
    discrete = bilinear(dense_system(poles, p, b, c), 1e-10 * step)
    for function in (truncated, untruncated):
        with pytest.raises(ValueError, match="length=2 is too short for steps this small"):
            function(discrete, 2)
