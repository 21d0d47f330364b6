import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shoestring.models.conv_nets import PlainConvNet, ResidualBlock, ResidualNet


def weights(model):
    return sum(p.numel() for p in model.parameters())


@given(size=st.integers(4, 33), batch=st.integers(1, 3), classes=st.integers(2, 11))
def test_any_picture_gives_one_logit_per_class(size, batch, classes):
    x = torch.randn(batch, 1, size, size)
    assert PlainConvNet(size, classes)(x).shape == (batch, classes)
    assert ResidualNet(1, 2, classes).eval()(x).shape == (batch, classes)


def test_sizes():
    assert weights(PlainConvNet()) == 160 + 4_640 + 188_280 + 1_210  # conv, conv, linear, linear by hand
    weighted = [m for m in ResidualNet(3).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([m for m in weighted if getattr(m, "kernel_size", (3, 3)) == (3, 3)]) == 6 * 3 + 2


def test_a_block_whose_body_is_zero_is_its_shortcut():
    block = ResidualBlock(3, 3, 1).eval()
    nn.init.zeros_(block.body[3].weight)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(block(x), x.relu())


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="image_size=3"):
        PlainConvNet(3)
    with pytest.raises(ValueError, match="blocks=0"):
        ResidualNet(0)
