"""Post-training emulation, held to the same network written out with explicit roundings."""

import copy

import pytest
import torch
from torch import nn

from shoestring.compression.activation_ranges import KullbackLeibler, MeanSquare, MinMax, Percentile
from shoestring.compression.emulation import emulate, emulate_static
from shoestring.layers.emulated import Rounders, emulate_layers
from shoestring.numbers.formats import named_format
from shoestring.numbers.integer import IntegerFormat, IntegerQuantizer
from shoestring.numbers.rounder import Rounder
from shoestring.numbers.rounding_bits import Rounding

E5M2 = Rounder(named_format("e5m2"))
E4M3 = Rounder(named_format("e4m3fn"))
HALF = Rounder(named_format("half"))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    ).eval()


IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def unchanged(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_only():
    model = network()
    before = copy.deepcopy(model.state_dict())
    emulated = emulate(model, weights=E5M2)
    assert unchanged(model, before)
    for name, value in emulated.named_parameters():
        assert torch.equal(value, before[name] if "bias" in name else E5M2(before[name]))
    for name, value in emulated.named_buffers():
        assert torch.equal(value, before[name])  # running statistics are no weights
    with_biases = emulate(model, weights=E5M2, biases=HALF)
    assert torch.equal(with_biases[0].bias, HALF(before["0.bias"]))


def test_mixed_weights_and_activations_round_where_layers_take_and_give_them():
    model = network()
    conv, norm, relu, flatten, linear = copy.deepcopy(model)
    emulated = emulate(model, weights=E5M2, activations=E4M3)
    with torch.no_grad():
        for layer in (conv, norm, linear):
            layer.weight.copy_(E5M2(layer.weight))
        x = E4M3(conv(E4M3(IMAGES)))
        x = E4M3(relu(E4M3(norm(x))))
        expected = E4M3(linear(flatten(x)))
        assert torch.equal(emulated(IMAGES), expected)


def test_it_agrees_with_the_layers_that_round_as_they_compute():
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))
    x = torch.randn(4, 6)
    once = emulate(model, weights=E5M2, biases=E5M2, activations=E4M3)
    always = emulate_layers(model, Rounders(weight=E5M2, bias=E5M2, input=E4M3, output=E4M3))
    assert torch.equal(once(x), always(x))


def test_integers_take_a_scale_per_row_and_per_call():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    emulated = emulate(model, weights=IntegerFormat(4), activations=IntegerFormat(8))
    x = torch.randn(5, 6)

    def eight(v):
        return IntegerQuantizer(IntegerFormat(8))(v)

    weight = IntegerQuantizer(IntegerFormat(4), axis=0)(model[0].weight.detach())
    for scale in (1.0, 100.0):  # the second call must not reuse the first one's range
        expected = eight(eight(nn.functional.linear(eight(scale * x), weight, model[0].bias)).relu())
        torch.testing.assert_close(emulated(scale * x), expected, rtol=0, atol=0)


def test_ignored_layers_are_left_alone():
    model = network()
    emulated = emulate(model, weights=E5M2, activations=E5M2, ignore=["4"])
    assert torch.equal(emulated[4].weight, model[4].weight)
    assert not emulated[4]._forward_hooks
    assert not torch.equal(emulated[0].weight, model[0].weight)


def test_shared_parameters_stay_shared_and_are_rounded_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    rounder = Rounder(named_format("e5m2"), Rounding.STOCHASTIC, seed=5)
    emulated = emulate(model, weights=rounder)
    assert emulated[1].weight is emulated[0].weight
    fresh = Rounder(named_format("e5m2"), Rounding.STOCHASTIC, seed=5)
    assert torch.equal(emulated[0].weight, fresh(model[0].weight))


def test_an_emulated_model_can_be_copied_and_still_rounds():
    emulated = emulate(network(), activations=E5M2)
    assert torch.equal(copy.deepcopy(emulated)(IMAGES), emulated(IMAGES))


@pytest.mark.parametrize("ranges", [MinMax(), Percentile(), MeanSquare(), KullbackLeibler(), None])
@pytest.mark.parametrize("activations", [E4M3, IntegerFormat(8), IntegerFormat(8, symmetric=False)])
def test_static_eight_bits_hardly_change_the_result(ranges, activations):
    model = network()
    before = copy.deepcopy(model.state_dict())
    emulated = emulate_static(
        model, [IMAGES[:3], IMAGES[3:]], weights=IntegerFormat(8), activations=activations, ranges=ranges
    )
    assert unchanged(model, before)
    assert isinstance(emulated[1], nn.Identity)
    assert not emulated.training
    difference = (emulated(IMAGES) - model(IMAGES)).norm() / model(IMAGES).norm()
    assert 0 < difference < (0.1 if activations is E4M3 else 0.05)


def test_static_ranges_clamp_what_calibration_did_not_see():
    model = nn.Sequential(nn.ReLU())
    emulated = emulate_static(model, [torch.tensor([0.0, 2.0])], activations=HALF)
    assert emulated(torch.tensor([1.5, 7.0, -1.0])).tolist() == [1.5, 2.0, 0.0]


def test_static_integers_use_the_scale_of_the_calibration():
    model = nn.Sequential(nn.Tanh())
    emulated = emulate_static(model, [torch.tensor([-10.0, 10.0])], activations=IntegerFormat(3))
    assert emulated(torch.tensor([0.1, 0.5, 5.0])).tolist() == pytest.approx([0.0, 1 / 3, 1.0], rel=1e-6)


def test_calibration_batches_may_be_tuples_or_mappings():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, a, b):
            return self.linear(a + b)

    model, a = Adds(), torch.randn(3, 2)
    by_name = emulate_static(model, [{"a": a, "b": a}], activations=E4M3)
    by_place = emulate_static(model, [(a, a)], activations=E4M3)
    assert torch.equal(by_name(a, a), by_place(a, a))


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: emulate_static(network(), [], activations=E4M3), "the calibration iterator is empty"),
        (
            lambda: emulate_static(network(), [IMAGES * float("nan")], activations=E4M3),
            "layer '0' gave NaN or infinity",
        ),
        (
            lambda: emulate_static(Lazy(), [torch.ones(1, 2)], activations=E4M3),
            "no calibration batch gave floating-point values at 'spare'",
        ),
        (lambda: emulate(network(), weights=E5M2, ignore=["9"]), "ignore names '9', no layer of Sequential"),
        (lambda: emulate(network()), "nothing is to be rounded"),
        (lambda: emulate(nn.Linear(2, 2), weights=E5M2, ignore=[""]), "no layer left"),
        (
            lambda: emulate(nn.Sequential(nn.Linear(2, 2)), activations=IntegerFormat(8))(
                torch.full((1, 2), float("nan"))
            ),
            "'0': a calibration batch holds NaN",
        ),
    ],
)
def test_what_cannot_be_done_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=64,
            tie_word_embeddings=True,
        )
    ).eval()


def test_a_whole_transformers_model_by_one_call():
    model, ids = llama(), torch.arange(12)[None] * 5 % 64
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        reference = model(ids).logits
        drops = {}
        for name in ("half", "bfloat16", "e4m3fn", "e5m2"):
            rounder = Rounder(named_format(name))
            logits = emulate(model, weights=rounder, activations=rounder, biases=rounder)(ids).logits
            assert torch.equal(logits, rounder(logits))
            drops[name] = float((logits - reference).norm() / reference.norm())
    assert unchanged(model, before)
    assert 0 < drops["half"] < drops["bfloat16"] < drops["e4m3fn"] < drops["e5m2"] < 0.5


def test_a_transformers_model_still_generates_and_stays_tied():
    emulated = emulate(llama(), weights=E4M3, activations=HALF)
    assert emulated.lm_head.weight is emulated.model.embed_tokens.weight
    ids = emulated.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert ids.shape == (1, 7)


def test_a_transformers_model_is_calibrated_by_token_ids():
    model, ids = llama(), torch.arange(24).view(2, 12)
    emulated = emulate_static(
        model, [{"input_ids": ids}], weights=IntegerFormat(8), activations=IntegerFormat(8)
    )
    with torch.no_grad():
        difference = (emulated(ids).logits - model(ids).logits).norm() / model(ids).logits.norm()
    assert 0 < difference < 0.1


def test_attention_is_one_layer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    emulated = emulate(layer, weights=E5M2, activations=E5M2)
    assert torch.equal(emulated.self_attn.out_proj.weight, E5M2(layer.self_attn.out_proj.weight))
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        assert torch.equal(emulated(x), E5M2(emulated(x)))
