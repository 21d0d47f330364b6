import pytest
import torch

from shoestring.layers.geglu import GEGLU, naive_geglu


def test_equals_the_equation():
    layer = GEGLU(3, 5).double()
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    gate, value = layer.into.weight.chunk(2)
    torch.testing.assert_close(layer(x), naive_geglu(x, gate, value, layer.out.weight))
    assert all(name.endswith("weight") for name, _ in layer.named_parameters())


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
def test_sizes_that_cannot_be(sizes):
    with pytest.raises(ValueError, match="=0 must be 1"):
        GEGLU(*sizes)
