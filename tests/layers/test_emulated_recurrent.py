"""Rounded recurrent layers, held to the equations of torch's documentation written out step by step."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shoestring.layers.emulated import QuantGRU, QuantLSTM, QuantRNN, Rounders, emulate_layers
from shoestring.numbers.formats import named_format
from shoestring.numbers.rounder import Rounder

E5M2 = Rounder(named_format("e5m2"))
HALF = Rounder(named_format("half"))
IDENTITY = torch.clone
KINDS = [(QuantRNN, nn.RNN), (QuantGRU, nn.GRU), (QuantLSTM, nn.LSTM)]


def scalar_lstm(layer, x, rd_w, rd_b, rd):
    """One layer, one direction."""
    w_ih, w_hh = rd_w(layer.weight_ih_l0), rd_w(layer.weight_hh_l0)
    b_ih, b_hh = rd_b(layer.bias_ih_l0), rd_b(layer.bias_hh_l0)
    h = c = torch.zeros(x.shape[1], layer.hidden_size, dtype=x.dtype)
    outputs = []
    for step in x:
        i, f, g, o = (F.linear(step, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, -1)
        c_new = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h, c = rd(o.sigmoid() * c_new.tanh()), rd(c_new)
        outputs.append(h)
    return torch.stack(outputs), h, c


def test_an_lstm_rounds_both_states_after_every_step():
    torch.manual_seed(0)
    layer = QuantLSTM(3, 4, rounders=Rounders(weight=E5M2, input=E5M2, output=HALF, bias=HALF)).double()
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        output, (h, c) = layer(x)
        expected, expected_h, expected_c = scalar_lstm(layer, E5M2(x), E5M2, HALF, HALF)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    assert torch.equal(h[0], expected_h)
    assert torch.equal(c[0], expected_c)


def test_rounded_weights_alone_reach_torchs_own_loop():
    """It reads a list of weights, not the parameters."""
    for kind, native in KINDS:
        torch.manual_seed(0)
        layer, reference = kind(3, 4, 2, rounders=Rounders(weight=E5M2, bias=E5M2)), native(3, 4, 2)
        x = torch.randn(5, 2, 3)
        reference.load_state_dict({name: E5M2(p) for name, p in layer.state_dict().items()})
        assert torch.equal(layer(x)[0], reference(x)[0])
        unrounded = native(3, 4, 2)
        unrounded.load_state_dict(layer.state_dict())
        assert not torch.equal(layer(x)[0], unrounded(x)[0])
        layer(x)[0].sum().backward()
        assert all(p.grad is not None for p in layer.parameters())
        assert all(a is b for a, b in zip(layer._flat_weights, layer.parameters(), strict=True))


@pytest.mark.parametrize(("kind", "native"), KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_stepping_with_a_rounder_that_does_nothing_is_the_native_layer(
    kind, native, bidirectional, batch_first, bias
):
    torch.manual_seed(0)
    options = {"num_layers": 2, "bidirectional": bidirectional, "batch_first": batch_first, "bias": bias}
    reference = native(3, 4, **options).double()
    layer = emulate_layers(reference, Rounders(output=IDENTITY))
    assert type(layer) is kind
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    for argument, state in ((x, None), (x[0], None), (x, "given")):
        if state == "given":
            n_states, batch = 2 * (2 if bidirectional else 1), x.shape[0 if batch_first else 1]
            state = torch.randn(n_states, batch, 4, dtype=torch.float64)
            state = (state, state.flip(0)) if native is nn.LSTM else state
        ours, theirs = layer(argument, state), reference(argument, state)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_relu_is_honoured():
    torch.manual_seed(0)
    reference = nn.RNN(3, 4, nonlinearity="relu")
    x = torch.randn(5, 2, 3)
    layer = emulate_layers(reference, Rounders(output=IDENTITY))
    torch.testing.assert_close(layer(x)[0], reference(x)[0])


def test_gradients_pass_through_the_rounded_states():
    layer = QuantGRU(3, 4, rounders=Rounders(output=E5M2, gradient=E5M2))
    x = torch.randn(5, 2, 3, requires_grad=True)
    layer(x)[0].sum().backward()
    assert x.grad.abs().min() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_what_is_not_emulated_is_refused():
    packed = nn.utils.rnn.pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    with pytest.raises(TypeError, match="PackedSequence cannot be rounded step by step"):
        QuantRNN(3, 4, rounders=Rounders(output=E5M2))(packed)
    with pytest.raises(ValueError, match="proj_size=2"):
        QuantLSTM(3, 4, proj_size=2, rounders=Rounders(output=E5M2))(torch.randn(5, 2, 3))
    assert QuantRNN(3, 4, rounders=Rounders(weight=E5M2))(packed)[0].data.shape == (6, 4)
