"""Rounded attention, held to the equation written out and to torch's own attention."""

import copy
import math

import pytest
import torch
from torch import nn

from shoestring.layers.emulated import QuantMultiheadAttention, Rounders, emulate_layers
from shoestring.numbers.formats import named_format
from shoestring.numbers.rounder import Rounder

E5M2 = Rounder(named_format("e5m2"))
E4M3 = Rounder(named_format("e4m3fn"))
IDENTITY = torch.clone


def native(**options):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, **options)
    if layer.in_proj_bias is not None:
        nn.init.normal_(layer.in_proj_bias)
    return layer


@pytest.mark.parametrize("need_weights", [False, True])
def test_without_rounders_it_is_torchs(need_weights):
    layer, x = native(batch_first=True), torch.randn(3, 5, 8)
    twin = emulate_layers(layer, Rounders())
    assert type(twin) is QuantMultiheadAttention
    for training in (True, False):
        layer.train(training)
        twin.train(training)
        ours, theirs = (each(x, x, x, need_weights=need_weights) for each in (twin, layer))
        assert torch.equal(ours[0], theirs[0])
        assert (ours[1] is None) == (theirs[1] is None)


def test_rounded_operands_reach_torchs_own_attention():
    layer, x = native(), torch.randn(5, 3, 8)
    rounded = copy.deepcopy(layer)
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            parameter.copy_((E4M3 if "bias" in name else E5M2)(parameter))
    twin = emulate_layers(layer, Rounders(weight=E5M2, bias=E4M3, input=E4M3))
    assert torch.equal(twin(x, x, x)[0], rounded(*[E4M3(x)] * 3)[0])


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True}, {"bias": False}, {"kdim": 6, "vdim": 7}],
    ids=lambda options: " ".join(options) or "plain",
)
@pytest.mark.parametrize("mask", ["none", "padding", "causal", "heads", "float"])
def test_the_written_out_path_is_torchs_attention(options, mask):
    layer = native(**options).double()
    twin = emulate_layers(layer, Rounders(output=IDENTITY))
    q, k, v = (torch.randn(3, 5, n, dtype=torch.float64) for n in (8, layer.kdim, layer.vdim))
    if not layer.batch_first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    masks = {
        "none": {},
        "padding": {"key_padding_mask": torch.tensor([[False] * (5 - i) + [True] * i for i in range(3)])},
        "causal": {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1), "is_causal": True},
        "heads": {"attn_mask": torch.rand(6, 5, 5) < 0.3},
        "float": {"attn_mask": torch.randn(5, 5, dtype=torch.float64)},
    }[mask]
    if mask == "heads":
        masks["attn_mask"][..., 0] = False  # nobody sees nothing
    for average in (True, False):
        ours, theirs = (m(q, k, v, average_attn_weights=average, **masks) for m in (twin, layer))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    if "kdim" not in options and mask == "none":
        torch.testing.assert_close(twin(q[0], k[0], v[0]), layer(q[0], k[0], v[0]), rtol=1e-10, atol=1e-12)


def test_every_intermediate_result_is_rounded():
    layer = native(batch_first=True).double()
    twin = emulate_layers(layer, Rounders(output=E5M2))
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    with torch.no_grad():
        q, k, v = (
            E5M2(x @ w.T + b).view(2, 4, 2, 4).transpose(1, 2)
            for w, b in zip(layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True)
        )
        weights = E5M2(E5M2(q @ k.transpose(-1, -2) / math.sqrt(4)).softmax(-1))
        mixed = E5M2(weights @ v).transpose(1, 2).reshape(2, 4, 8)
        expected = E5M2(layer.out_proj(mixed))
        output, averaged = twin(x, x, x)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    torch.testing.assert_close(averaged, weights.mean(1), rtol=0, atol=0)


def test_torchs_fused_transformer_layer_does_not_bypass_the_rounding():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    twin = emulate_layers(layer, Rounders(weight=E5M2, output=E5M2)).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        fused, with_gradient_path = twin(x), None
    with_gradient_path = twin(x)
    assert torch.equal(fused, with_gradient_path)
    assert torch.equal(fused, E5M2(fused))
    assert not torch.equal(fused, layer(x))


def test_what_is_not_emulated_is_refused():
    x = torch.randn(5, 3, 8)
    with pytest.raises(ValueError, match="add_bias_kv and add_zero_attn are not emulated"):
        emulate_layers(native(add_zero_attn=True), Rounders(output=E5M2))(x, x, x)
    with pytest.raises(ValueError, match="is_causal=True needs attn_mask"):
        emulate_layers(native(), Rounders(output=E5M2))(x, x, x, is_causal=True)
