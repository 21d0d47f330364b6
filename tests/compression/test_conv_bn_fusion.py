import pytest
import torch
from torch import nn

from shoestring.compression.conv_bn_fusion import fuse_conv_bn
from shoestring.notices import record_fallbacks


def trained(module):
    """Eval mode with running statistics and scales that are not the initial ones."""
    generator = torch.Generator().manual_seed(0)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d):
            each.running_mean.normal_(generator=generator)
            each.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.normal_(each.weight, generator=generator)
            nn.init.normal_(each.bias, generator=generator)
    return module.eval()


class Branching(nn.Module):
    """A convolution whose result is used twice must not be changed; the other may be."""

    def __init__(self):
        super().__init__()
        self.shared, self.norm_a = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.single, self.norm_b = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.shared(x)
        return self.norm_b(self.single(torch.relu(self.norm_a(y)))) + y


@pytest.mark.parametrize(
    ("build", "x", "folded"),
    [
        (
            lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()),
            torch.randn(2, 2, 6, 6),
            ["1"],
        ),
        (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3)), torch.randn(2, 2, 6), ["1"]),
        (Branching, torch.randn(2, 2, 5, 5), ["norm_b"]),
        (lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3)), torch.randn(2, 2, 6, 6), []),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.randn(4, 3), []),
    ],
)
def test_the_function_stays_and_the_norm_goes(build, x, folded):
    torch.manual_seed(0)
    model = trained(build())
    before = model(x)
    assert fuse_conv_bn(model) == folded
    assert all(isinstance(model.get_submodule(name), nn.Identity) for name in folded)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))

    def forward(self, x):
        return self.net(x) if x.sum() > 0 else self.net(-x)


def test_a_model_that_cannot_be_traced_stays_and_says_so():
    model = trained(Untraceable())
    with record_fallbacks() as said:
        assert fuse_conv_bn(model) == []
    assert "cannot be traced" in said[0]
    assert isinstance(model.net[1], nn.BatchNorm2d)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="call model.eval\\(\\) first"):
        fuse_conv_bn(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)))
