"""A layer that takes its inputs in another order."""

import pytest
import torch
from torch import nn

from shoestring.layers import ReorderedLinear


def test_columns_meet_their_inputs():
    inner, order = nn.Linear(5, 3), torch.tensor([4, 0, 3, 1, 2])
    layer, x = ReorderedLinear(inner, order), torch.randn(2, 7, 5)
    assert torch.equal(layer.weight[:, order], inner.weight)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_an_order_is_a_permutation():
    with pytest.raises(ValueError, match="each of the 3 inputs once"):
        ReorderedLinear(nn.Linear(3, 2), torch.tensor([0, 1, 1]))
