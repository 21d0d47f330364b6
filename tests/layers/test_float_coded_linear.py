"""Float-coded layers against their decoded matrix, by the kernel and without it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shoestring.layers import FloatCodedLinear
from shoestring.notices import record_fallbacks
from shoestring.numbers import E4M3_BLOCKS, MXFP4, BlockFloat


@pytest.mark.parametrize("form", [E4M3_BLOCKS, MXFP4])
@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_products_are_those_of_the_decoded_matrix(form, tokens):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(37, 192, generator=generator), torch.randn(37, generator=generator)
    layer = FloatCodedLinear.of(form, weight, bias)
    x = torch.randn(2, tokens, 192, generator=generator)[:, : tokens // 2 + 1]
    with torch.no_grad(), record_fallbacks() as said:
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, bias), rtol=1e-4, atol=1e-4)
    assert said == []
    # Beside its scale, a block of e2m1 saturates up to a quarter below its largest element.
    assert (layer.weight - weight).abs().max() <= weight.abs().max() / 4


def test_new_codes_are_packed_anew():
    layer = FloatCodedLinear.of(MXFP4, torch.ones(3, 32))
    x = torch.ones(1, 32)
    with torch.no_grad():
        assert layer(x).tolist() == [[32.0] * 3]
        layer.load_state_dict(FloatCodedLinear.of(MXFP4, 2 * torch.ones(3, 32)).state_dict())
        layer.scales += 1
        assert layer(x).tolist() == [[128.0] * 3]


def test_what_has_no_kernel_is_announced_and_right():
    layer = FloatCodedLinear.of(BlockFloat("e5m2", 4, 5), torch.randn(6, 10))
    x = torch.randn(2, 10)
    with record_fallbacks() as said:
        torch.testing.assert_close(layer(x), x @ layer.weight.T)
    assert "no kernel for e5m2 with 10 inputs in blocks of 5" in said[0]


def test_gradients_reach_the_inputs():
    layer, x = FloatCodedLinear.of(MXFP4, torch.randn(4, 32)), torch.randn(2, 32, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(2, -1))
    assert isinstance(layer, nn.Module)
