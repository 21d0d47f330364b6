"""Layers on binary planes: the packed one computes with what is stored, the latent one has its gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shoestring.layers import DualBinaryLinear, LatentDualBinaryLinear
from shoestring.layers.dual_binary_linear import KERNEL_TOKENS, LevelGradient
from shoestring.numbers.dual_binary import DualBinary


def latent_layer(size=64, bias=True, **options):
    torch.manual_seed(0)
    linear = nn.Linear(2 * size, 20, bias=bias)
    form = DualBinary(size)
    return LatentDualBinaryLinear(
        form, linear.weight, form.fit(linear.weight.detach()), linear.bias, **options
    )


@pytest.mark.parametrize("size", [12, 40, 64, 128])
@pytest.mark.parametrize("tokens", [1, KERNEL_TOKENS, KERNEL_TOKENS + 1])
def test_packed_equals_latent(size, tokens):
    layer = latent_layer(size)
    packed = layer.pack()
    x = torch.randn(tokens, 2 * size)
    torch.testing.assert_close(packed.weight, layer.weight)
    torch.testing.assert_close(packed(x), layer(x), rtol=1e-4, atol=1e-5)
    assert packed.stored.nbytes == DualBinary(size).nbytes(20, 2 * size)


def test_levels_follow_the_stored_tensors_and_no_cast_rounds_them():
    packed = latent_layer().pack()
    x = torch.randn(2, 128)
    before, levels = packed(x), packed.levels.clone()
    packed.to(torch.bfloat16).to(torch.float32)
    assert torch.equal(packed.levels, levels)
    packed.bias = None
    packed.levels = packed.levels * 2
    torch.testing.assert_close(packed(x), 2 * (before - latent_layer().bias), rtol=1e-4, atol=1e-5)
    state = latent_layer().pack().state_dict()
    empty = DualBinaryLinear(DualBinary(64), 128, 20, bias=True)
    empty.load_state_dict(state)
    assert torch.equal(empty(x), latent_layer().pack()(x))


def test_gradients_reach_the_inputs():
    packed = latent_layer().pack()
    x = torch.randn(2, 128, requires_grad=True)
    packed(x).sum().backward()
    torch.testing.assert_close(x.grad, packed.weight.sum(0).expand(2, -1))


@given(seed=st.integers(0, 50))
def test_gradients_of_the_levels_are_those_of_fixed_planes(seed):
    layer = latent_layer(16, bias=False)
    generator = torch.Generator().manual_seed(seed)
    x, g = torch.randn(3, 32, generator=generator), torch.randn(3, 20, generator=generator)
    (layer(x) * g).sum().backward()
    planes = layer.form.assign(layer.latent.detach(), layer.levels.detach())
    theta = layer.theta.detach().double()

    def value(t):
        levels = layer.first_levels.double() * (1 + t)
        a1, a2 = (part.repeat_interleave(16, 1) for part in levels.unbind(-1))
        return ((x.double() @ (a1 * planes[0] + a2 * planes[1]).T) * g).sum()

    step = torch.zeros_like(theta)
    for at in ((0, 0, 0), (7, 1, 1), (19, 1, 0)):
        step.zero_()[at] = 1e-4
        slope = (value(theta + step) - value(theta - step)) / 2e-4
        assert layer.theta.grad[at].item() == pytest.approx(slope.item(), rel=1e-3, abs=1e-4)
    torch.testing.assert_close(layer.latent.grad, g.T @ x)


def test_clipped_gradients_stop_beyond_the_outer_levels():
    layer = latent_layer(16, bias=False, clip=True)
    layer(torch.eye(32)).sum().backward()
    levels = layer.levels.detach()
    low, high = levels.amin(-1), levels.amax(-1)
    grouped = layer.latent.detach().reshape(20, 2, 16)
    outside = ((grouped < low[..., None]) | (grouped > high[..., None])).reshape(20, 32)
    assert outside.any()
    assert torch.equal(layer.latent.grad == 0, outside)


def test_through_the_steps_autograd_adds_what_the_planes_depend_on():
    """With dH/dt = 1: db₁/dw = 1, db₂/dw = −1 + a₁·db₁/dw; both mirror images alike."""
    layer = latent_layer(16, bias=False, gradient=LevelGradient.THROUGH)
    torch.testing.assert_close(layer.weight, latent_layer(16, bias=False).weight)
    layer.weight.sum().backward()
    a1, a2 = (part.repeat_interleave(16, 1) for part in layer.levels.detach().unbind(-1))
    sign = torch.where(a1 < 0, -1.0, 1.0)
    expected = a1 * sign + a2 * sign * (a1 * sign - 1)
    torch.testing.assert_close(layer.latent.grad, expected)


def test_order_holds_after_many_random_steps():
    torch.manual_seed(1)
    layer = latent_layer(16)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        (layer(torch.randn(4, 32)) * torch.randn(4, 20)).sum().backward()
        optimizer.step()
        layer.project()
        assert layer.form.order(layer.levels).all()
    packed = layer.pack()
    ones = sum(int(plane.sum()) for plane in layer.form.assign(layer.latent, packed.levels.float()))
    assert packed.stored.set_bits() == ones


def test_a_group_of_zeros_trains_without_harm():
    weight = torch.zeros(4, 64)
    form = DualBinary(64)
    layer = LatentDualBinaryLinear(form, weight, form.fit(weight))
    layer(torch.randn(2, 64)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    layer.project()
    assert torch.isfinite(layer.theta).all()
    assert not layer.pack().weight.any()


def test_bad_input():
    with pytest.raises(ValueError, match="100 inputs, no whole groups"):
        DualBinaryLinear(DualBinary(64), 100, 4)
