import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.layers.parameter_hint import hinted_parameters
from shoestring.layers.seqboat.router_logits import BIAS_SCALE, MEAN_RATE, RouterLogits
from shoestring.layers.seqboat.seqboat import SeqBoat
from shoestring.layers.seqboat.sparse_modular_activation import Router, RouterOptions


def made(d_model=5, **options):
    torch.manual_seed(0)
    layer = RouterLogits(d_model, **options).double()
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    return layer


def naive(layer, m, mean):
    return torch.stack([layer.weight @ (token - mean) + BIAS_SCALE * layer.bias for token in m.flatten(0, 1)])


@given(batch=st.integers(1, 3), seq=st.integers(1, 7), passes=st.integers(1, 4))
def test_tokens_are_compared_with_the_mean_of_the_passes_before(batch, seq, passes):
    layer = made(centred=True)
    mean = None
    for number in range(passes):
        m = torch.randn(batch, seq, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        mean = m.mean((0, 1)) if mean is None else mean
        torch.testing.assert_close(layer(m).flatten(0, 1), naive(layer, m, mean))
        mean = (1 - MEAN_RATE) * mean + MEAN_RATE * m.mean((0, 1))
    layer.eval()
    torch.testing.assert_close(layer(m).flatten(0, 1), naive(layer, m, mean))
    torch.testing.assert_close(layer.mean, mean)


def test_without_centring_it_is_a_linear_map():
    layer, m = made(), torch.randn(2, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(m), m @ layer.weight.T + layer.bias)
    assert int(layer.passes) == 0


def test_what_raises_some_tokens_lowers_the_others():
    layer, m = made(centred=True), torch.rand(2, 30, 5, dtype=torch.float64)
    favoured = torch.zeros(2, 30, dtype=torch.bool)
    favoured[:, :6] = True
    before = layer(m)[..., 1]
    layer.passes.zero_()
    (gradient,) = torch.autograd.grad(layer(m)[favoured][:, 1].sum(), [layer.weight])
    with torch.no_grad():
        layer.weight += gradient
        layer.passes.zero_()
        moved = layer(m)[..., 1] - before
    assert moved[favoured].mean() > 0 > moved[~favoured].mean()
    assert abs(moved.mean()) < 1e-12


def test_a_token_does_not_feel_its_neighbours():
    layer, m = made(centred=True), torch.randn(2, 6, 5, dtype=torch.float64)
    layer(m)
    other = torch.cat([m[:, :4], torch.randn(2, 2, 5, dtype=torch.float64)], 1)
    mean = layer.mean.clone()
    kept = layer(m)[:, :4]
    layer.mean.copy_(mean)
    torch.testing.assert_close(layer(other)[:, :4], kept, rtol=0, atol=0)


def test_pads_do_not_count():
    layer, m = made(centred=True), torch.randn(2, 6, 5, dtype=torch.float64)
    mask = torch.tensor([[True] * 6, [True, True, False, False, False, False]])
    layer(m, mask)
    torch.testing.assert_close(layer.mean, m[mask].mean(0))


def test_folding_changes_no_logit():
    layer, m = made(centred=True), torch.randn(2, 6, 5, dtype=torch.float64)
    layer(m)
    layer.eval()
    before = layer(m)
    layer.fold()
    torch.testing.assert_close(layer(m), before)
    torch.testing.assert_close(before, m @ layer.weight.T + layer.bias)
    layer.fold()
    torch.testing.assert_close(layer(m), before)


def test_a_floor_is_a_hint_to_whoever_trains():
    layer = SeqBoat(8, router=RouterOptions(gradient_floor=1e-3))
    hints = {name: hint.adam_eps for name, _, hint in hinted_parameters(layer) if hint.adam_eps}
    assert hints == {"router.temperature": 1e-3, "choose.weight": 1e-3, "choose.bias": 1e-3}
    plain = SeqBoat(8)
    assert not any(hint.adam_eps for _, _, hint in hinted_parameters(plain))
    assert isinstance(plain.router, Router)


def test_a_floor_below_0_is_refused():
    with pytest.raises(ValueError, match=r"gradient_floor=-1.0 must not be below 0"):
        RouterOptions(gradient_floor=-1.0)
