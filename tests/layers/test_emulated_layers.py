"""Emulated layers: torch's own bits without rounders, the definition with them."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from shoestring.layers.emulated import (
    EMULATED,
    QuantBatchNorm2d,
    QuantConv2d,
    QuantGELU,
    QuantLinear,
    QuantReLU,
    Rounders,
    ZeroWhereSaturated,
    emulate_layers,
    round_gradient,
    round_tensor,
    saturating_straight_through,
    straight_through,
)
from shoestring.numbers.fixed_point import FixedPointFormat
from shoestring.numbers.formats import FloatFormat, named_format
from shoestring.numbers.integer import IntegerFormat, IntegerQuantizer
from shoestring.numbers.rounder import Rounder
from shoestring.numbers.rounding_bits import Rounding

E5M2 = Rounder(named_format("e5m2"))
E4M3 = Rounder(named_format("e4m3fn"))
UP = Rounder(named_format("e5m2"), Rounding.UP)
X1, X2, X3 = torch.randn(2, 4, 9), torch.randn(2, 4, 8, 8), torch.randn(2, 4, 5, 6, 7)
IDS = torch.tensor([[1, 4, 0], [2, 2, 5]])
SAMPLES = {
    nn.Linear: ((4, 3), torch.randn(5, 4)),
    nn.Embedding: ((6, 3), IDS),
    nn.Conv1d: ((4, 6, 3), X1),
    nn.Conv2d: ((4, 6, 3), X2),
    nn.Conv3d: ((4, 6, 3), X3),
    nn.ConvTranspose1d: ((4, 6, 3), X1),
    nn.ConvTranspose2d: ((4, 6, 3), X2),
    nn.ConvTranspose3d: ((4, 6, 3), X3),
    nn.LayerNorm: ((9,), X1),
    nn.RMSNorm: ((9,), X1),
    nn.GroupNorm: ((2, 4), X2),
    nn.BatchNorm1d: ((4,), X1),
    nn.BatchNorm2d: ((4,), X2),
    nn.BatchNorm3d: ((4,), X3),
    nn.ReLU: ((), X1),
    nn.GELU: ((), X1),
    nn.SiLU: ((), X1),
    nn.Sigmoid: ((), X1),
    nn.Tanh: ((), X1),
    nn.Softmax: ((-1,), X1),
    nn.RNN: ((9, 5, 2), X1),
    nn.GRU: ((9, 5, 2), X1),
    nn.LSTM: ((9, 5, 2), X1),
}


def pair(native, rounders=None):
    """A native layer and its emulated twin with the same parameters."""
    arguments, x = SAMPLES[native]
    torch.manual_seed(1)
    layer = native(*arguments)
    twin = EMULATED[native](*arguments, **({} if rounders is None else {"rounders": rounders}))
    twin.load_state_dict(layer.state_dict())
    return layer, twin, x


def first(output):
    return output[0] if isinstance(output, tuple) else output


def test_every_emulated_layer_is_sampled():
    assert set(SAMPLES) | {nn.MultiheadAttention} == set(EMULATED)


@pytest.mark.parametrize("native", SAMPLES)
def test_without_rounders_outputs_and_gradients_are_torchs_bits(native):
    layer, twin, x = pair(native)
    assert isinstance(twin, native)
    results = []
    for each in (layer, twin):
        argument = x.clone().requires_grad_() if x.is_floating_point() else x
        output = first(each(argument))
        output.square().sum().backward()
        results.append([output, argument.grad, *(p.grad for p in each.parameters()), *each.buffers()])
    for ours, theirs in zip(*results, strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("native", [n for n in SAMPLES if n not in (nn.RNN, nn.GRU, nn.LSTM)])
def test_with_rounders_the_operands_are_rounded(native):
    layer, twin, x = pair(native, Rounders(weight=E5M2, input=E4M3, output=UP, bias=E4M3))
    manual = copy.deepcopy(layer)
    with torch.no_grad():
        for name, parameter in manual.named_parameters():
            parameter.copy_((E4M3 if "bias" in name else E5M2)(parameter))
    rounded_x = E4M3(x) if x.is_floating_point() else x
    assert torch.equal(twin(x), UP(manual(rounded_x)))
    for (name, stored), (_, original) in zip(twin.named_parameters(), layer.named_parameters(), strict=True):
        assert torch.equal(stored, original), f"{name} was rounded in place"


@pytest.mark.parametrize("native", [nn.Linear, nn.Conv2d, nn.LayerNorm])
def test_the_gradient_is_that_of_the_rounded_layer_straight_through(native):
    """d/dw of the surrogate: the native layer's gradient, taken at the rounded operands."""
    layer, twin, x = pair(native, Rounders(weight=E5M2, input=E5M2, output=E5M2, bias=E5M2, gradient=E4M3))
    manual = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in manual.parameters():
            parameter.copy_(E5M2(parameter))
    ours, theirs = x.clone().requires_grad_(), E5M2(x).requires_grad_()
    output = twin(ours)
    upstream = torch.randn(output.shape)
    output.backward(upstream)
    manual(theirs).backward(E4M3(upstream))
    assert torch.equal(ours.grad, theirs.grad)
    for a, b in zip(twin.parameters(), manual.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_the_surrogate_passes_gradcheck():
    """Rounding to 2^-40 is, at the scale of finite differences, the smooth function it stands for."""
    fine = Rounder(FloatFormat(10, 45))
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: straight_through(v, fine), x)
    assert torch.autograd.gradcheck(lambda v: saturating_straight_through(v, fine), x)
    layer = QuantLinear(6, 3, rounders=Rounders(fine, fine, fine, fine, fine)).double()
    assert torch.autograd.gradcheck(layer, x)


def test_the_straight_through_gradient_is_exactly_the_identity():
    x = torch.tensor([0.3, -1e9, 1e-9, 5.0], requires_grad=True)
    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0])
    straight_through(x, E5M2).backward(upstream)
    assert torch.equal(x.grad, upstream)
    assert straight_through(x, None) is x


def test_where_it_saturates_the_gradient_may_vanish():
    x = torch.tensor([448.0, 449.0, -1e9, 0.1], requires_grad=True)
    y = saturating_straight_through(
        x, Rounder(FloatFormat(4, 3, finite_only=True, nan_code=0x7F, saturate=True))
    )
    assert y.tolist() == pytest.approx([448.0, 448.0, -448.0, 0.1015625])
    y.sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 0.0, 1.0]


def test_layers_may_pass_no_gradient_where_they_saturate():
    top = Rounder(FloatFormat(4, 3, finite_only=True, nan_code=0x7F, saturate=True))
    x = torch.tensor([[1.0, -500.0]], requires_grad=True)
    for input_rounder, expected in ((top, [[2.0, 3.0]]), (ZeroWhereSaturated(top), [[2.0, 0.0]])):
        layer = QuantLinear(2, 1, bias=False, rounders=Rounders(input=input_rounder))
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[2.0, 3.0]]))
        x.grad = None
        y = layer(x)
        assert y.item() == 2 - 3 * 448
        y.backward()
        assert x.grad.tolist() == expected


def test_a_fixed_point_format_saturates_at_its_own_ends():
    x = torch.tensor([-4.0, -4.01, 3.5, 3.51], requires_grad=True)
    y = straight_through(x, ZeroWhereSaturated(Rounder(FixedPointFormat(3, 1))))
    assert y.tolist() == [-4.0, -4.0, 3.5, 3.5]
    y.sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_the_gradient_alone_may_be_rounded():
    x = torch.tensor([1.1, 2.2], requires_grad=True)
    y = round_gradient(x, E5M2)
    assert torch.equal(y, x)
    y.backward(torch.tensor([1.1, 3.3]))
    assert x.grad.tolist() == [1.0, 3.5]


def test_fixed_point_integer_and_soft_rounders_serve_too():
    x = torch.randn(4, 6)
    for rounder in (
        Rounder(FixedPointFormat(3, 4)),
        IntegerQuantizer(IntegerFormat(4)),
        lambda v: (v * 8).round() / 8,
    ):
        layer = QuantLinear(6, 3, rounders=Rounders(weight=rounder))
        expected = nn.functional.linear(x, rounder(layer.weight.detach()), layer.bias)
        assert torch.equal(layer(x), expected)


def test_a_rounder_that_changes_shape_is_refused():
    with pytest.raises(ValueError, match="it must keep both"):
        round_tensor(torch.ones(3), lambda x: x[:1])


def test_stochastic_layers_draw_anew_each_call_and_repeat_with_the_seed():
    def run():
        rounder = Rounder(named_format("e5m2"), Rounding.STOCHASTIC, seed=3)
        layer = QuantReLU(rounders=Rounders(output=rounder))
        return layer(torch.full((50,), 1.1)), layer(torch.full((50,), 1.1))

    before = torch.get_rng_state()
    a, b = run(), run()
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert not torch.equal(a[0], a[1])


def test_compiled_and_plain_rounding_agree_on_strided_and_stochastic_tensors():
    x = torch.randn(6, 8).t()
    for mode in (Rounding.NEAREST_EVEN, Rounding.STOCHASTIC):
        rounders = [Rounder(named_format("half"), mode, seed=9) for _ in range(2)]
        assert torch.equal(round_tensor(x, rounders[0]), rounders[1](x))


def test_running_statistics_keep_full_precision():
    layer = QuantBatchNorm2d(4, rounders=Rounders(weight=E5M2, bias=E5M2, output=E5M2))
    reference = nn.BatchNorm2d(4)
    layer(X2)
    reference(X2)
    assert torch.equal(layer.running_mean, reference.running_mean)
    assert torch.equal(layer.running_var, reference.running_var)


def test_an_error_inside_leaves_the_parameters_as_they_were():
    layer = QuantConv2d(4, 2, 3, rounders=Rounders(weight=E5M2))
    with pytest.raises(RuntimeError):
        layer(torch.randn(1, 3, 8, 8))
    assert layer.weight is layer._parameters["weight"]


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))


def test_a_whole_model_is_converted_in_a_copy():
    original = model()
    before = copy.deepcopy(original.state_dict())
    converted = emulate_layers(original, Rounders(weight=E5M2, output=E5M2), ignore=["3"])
    assert [type(m).__name__ for m in converted] == ["QuantConv2d", "QuantReLU", "Flatten", "Linear"]
    assert [type(m).__name__ for m in original] == ["Conv2d", "ReLU", "Flatten", "Linear"]
    assert converted.state_dict().keys() == before.keys()
    conv = original[0]
    manual = E5M2(nn.functional.conv2d(X2, E5M2(conv.weight), conv.bias))
    assert torch.equal(converted(X2), original[3](original[2](E5M2(manual.relu()))))
    converted(X2).sum().backward()
    optimizer = torch.optim.SGD(converted.parameters(), 0.1)
    optimizer.step()
    for name, value in original.state_dict().items():
        assert torch.equal(value, before[name])


def test_without_rounders_a_converted_model_computes_the_same_bits():
    assert torch.equal(emulate_layers(model(), Rounders())(X2), model()(X2))


def test_conversion_errors_name_the_layers():
    with pytest.raises(ValueError, match="ignore names '7', no layer .* there are '0', '1', '3'"):
        emulate_layers(model(), Rounders(), ignore=["7"])
    with pytest.raises(ValueError, match="Flatten has no layer to emulate; the kinds that can be are Linear"):
        emulate_layers(nn.Flatten(), Rounders())


def test_a_layer_tells_its_rounders():
    assert "output=Rounder(fmt=FloatFormat(exp_bits=5" in repr(QuantGELU(rounders=Rounders(output=E5M2)))


def test_jax_functions_get_the_same_estimator():
    jax = pytest.importorskip("jax")
    from shoestring.layers.emulated.jax_straight_through import straight_through_jax

    x = jax.numpy.asarray([0.3, 1.1, -7.7], dtype="float32")
    weights = jax.numpy.asarray([1.0, 2.0, 3.0])

    def loss(v):
        return (straight_through_jax(v, E5M2) * weights).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(x)
    expected = E5M2(np.asarray(x))
    assert float(value) == pytest.approx(float((expected * np.asarray(weights)).sum()))
    np.testing.assert_array_equal(gradient, weights)
    np.testing.assert_array_equal(straight_through_jax(x, E5M2), expected)


def test_jax_gradients_may_vanish_where_the_format_ends():
    jax = pytest.importorskip("jax")
    from shoestring.layers.emulated.jax_straight_through import saturating_straight_through_jax

    x = jax.numpy.asarray([448.0, 449.0, -1e9, 0.1], dtype="float32")
    top = Rounder(FloatFormat(4, 3, finite_only=True, nan_code=0x7F, saturate=True))
    gradient = jax.jit(jax.grad(lambda v: saturating_straight_through_jax(v, top).sum()))(x)
    assert gradient.tolist() == [1.0, 0.0, 0.0, 1.0]
    np.testing.assert_array_equal(saturating_straight_through_jax(x, top), top(np.asarray(x)))
    with pytest.raises(ValueError, match="float formats, not FixedPointFormat"):
        saturating_straight_through_jax(x, Rounder(FixedPointFormat(3, 1)))


def test_under_jit_each_jax_step_draws_by_its_number():
    jax = pytest.importorskip("jax")
    from shoestring.layers.emulated.jax_straight_through import straight_through_jax

    x = jax.numpy.full(400, 1.1, dtype="float32")
    stochastic = Rounder(named_format("e5m2"), Rounding.STOCHASTIC, seed=4)
    step = jax.jit(jax.value_and_grad(lambda v, call: straight_through_jax(v, stochastic, call=call).sum()))
    for call in (0, 7):
        value, gradient = step(x, call)
        assert float(value) == float(stochastic(np.asarray(x), call=call).sum())
        assert (gradient == 1).all()
    assert float(step(x, 0)[0]) != float(step(x, 7)[0])
