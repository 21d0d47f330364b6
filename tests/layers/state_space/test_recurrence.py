"""The three recurrences, one step as the equation has it, and a prompt read in chunks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.layers.state_space.chunk_operator import ChunkOperator
from shoestring.layers.state_space.hippo import diagonal_legs, dplr_legs, random_dplr
from shoestring.layers.state_space.recurrence import LinearRecurrence
from shoestring.layers.state_space.s4_kernel import S4Kernel
from shoestring.layers.state_space.s4d_kernel import S4DKernel
from shoestring.layers.state_space.state_space import StateSpace


def state_space(d_state=4, *, channels=1, initial=None, seed=0, diagonal=False):
    g = torch.Generator().manual_seed(seed)
    if diagonal:
        kernel = S4DKernel(3, diagonal_legs(d_state), channels=channels, generator=g)
    else:
        initial = initial or random_dplr(d_state, g)
        kernel = S4Kernel(3, initial, channels=channels, generator=g)
    return StateSpace(kernel, generator=g)


def one_by_one(layer, u, state):
    outputs = []
    for x in u.unbind(1):
        y, state = layer.step(x, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


CASES = [
    ("dense", 64, dplr_legs), ("linear", 64, dplr_legs), ("linear", 2, dplr_legs), ("diagonal", 2, dplr_legs),
    ("diagonal", 64, lambda n: random_dplr(n, torch.Generator().manual_seed(1))),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "d_state", "initial"), CASES)
def test_steps_are_the_convolution(mode, d_state, initial):
    layer = state_space(initial=initial(d_state), channels=2)
    u = torch.randn(2, 330, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = layer(u)
        layer.setup_step(mode)
        stepped, last = one_by_one(layer, u, layer.init_state(2))
        first, state = layer.prefill(u[:, :133], layer.init_state(2))
        second, state = layer.prefill(u[:, 133:], state)
    bound = 1e-5 * expected.abs().max()
    assert (stepped - expected).abs().max() < bound
    assert (torch.cat([first, second], dim=1) - expected).abs().max() < bound
    assert (state["x"] - last["x"]).abs().max() < 1e-5 * last["x"].abs().max()


@pytest.mark.parametrize("mode", ["dense", "diagonal"])
def test_steps_of_a_diagonal_state_space_are_the_convolution(mode):
    layer = state_space(64, channels=2, diagonal=True)
    u = torch.randn(2, 330, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = layer(u)
        layer.setup_step(mode)
        stepped, _ = one_by_one(layer, u, layer.init_state(2))
        read, _ = layer.prefill(u, layer.init_state(2))
    assert (stepped - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (read - expected).abs().max() < 1e-5 * expected.abs().max()


@settings(max_examples=12)
@given(
    half=st.integers(1, 5), channels=st.integers(1, 2), seq=st.integers(1, 30), batch=st.integers(1, 3),
    size=st.integers(1, 9), mode=st.sampled_from(["dense", "linear", "diagonal"]), seed=st.integers(0, 30),
)  # fmt: skip
def test_modes_and_chunks_agree(half, channels, seq, batch, size, mode, seed):
    layer = state_space(2 * half, channels=channels, seed=seed, diagonal=mode == "diagonal").double()
    u = torch.randn(batch, seq, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    u.requires_grad_()
    layer.setup_step("dense")
    expected, _ = one_by_one(layer, u, layer.init_state(batch))
    layer.setup_step(mode)
    stepped, last = one_by_one(layer, u, layer.init_state(batch))
    torch.testing.assert_close(stepped, expected, rtol=1e-8, atol=1e-9)
    recurrence = layer._recurrence
    read, state = ChunkOperator.of(recurrence, size).read(u, recurrence.start(batch))
    read = (read + layer.skip * u.unsqueeze(2)).flatten(2)
    torch.testing.assert_close(read, expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(state, last["x"], rtol=1e-8, atol=1e-9)
    grad = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        torch.autograd.grad(read, u, grad)[0], torch.autograd.grad(expected, u, grad)[0], rtol=1e-7, atol=1e-8
    )


def test_one_linear_step_is_the_equation():
    g = torch.Generator().manual_seed(0)
    poles = torch.complex(-torch.rand(3, 5, generator=g).double(), torch.randn(3, 5, generator=g).double())
    p, b = torch.randn(2, 3, 5, dtype=torch.complex128, generator=g)
    c = torch.randn(2, 3, 5, dtype=torch.complex128, generator=g)
    dt = 0.1 + torch.rand(3, 1, generator=g).double()
    x = torch.randn(4, 3, 5, dtype=torch.complex128, generator=g)
    u = torch.randn(4, 3, dtype=torch.float64, generator=g)

    def twice_re(z):
        return 2 * z.sum(-1, keepdim=True).real

    d, e = 1 / (2 / dt - poles), 2 / dt + poles
    r = 1 + twice_re(p.conj() * d * p)
    v = e * x - p * twice_re(p.conj() * x) + 2 * b * u.unsqueeze(-1)
    expected = d * (v - p * twice_re(p.conj() * d * v) / r)
    y, found = LinearRecurrence.of(poles, p, b, c, dt[:, 0]).advance(x, u)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(y, twice_re(c * expected.unsqueeze(1)).squeeze(-1))


def test_eigenvectors_that_are_nearly_parallel_are_refused():
    layer = state_space(initial=dplr_legs(64))
    with pytest.raises(ValueError, match=r"mode='diagonal' would sum terms .* use mode='linear'"):
        layer.setup_step("diagonal")
