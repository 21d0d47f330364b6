"""Mixers of both directions: the mirror image, what each direction sees, and what is left without one."""

import pytest
import torch

from shoestring.layers.bidirectional_mamba import BidirectionalMamba, SharedBidirectionalMamba
from shoestring.layers.mamba import MambaMixer
from shoestring.yardstick.causality import influence


def both(dtype=torch.float32, d_model=6, **options):
    torch.manual_seed(0)
    return BidirectionalMamba(d_model, d_state=4, **options).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seq", [1, 2, 7, 50])
def test_a_mirrored_sequence_with_directions_swapped(dtype, seq):
    """Fails where x is reversed and z is not, or where y is reversed twice."""
    layer, swapped = both(dtype), both(dtype)
    swapped.load_state_dict(layer.state_dict())
    swapped.forwards, swapped.backwards = swapped.backwards, swapped.forwards
    x = torch.randn(2, seq, 6, dtype=dtype)
    torch.testing.assert_close(swapped(x.flip(1)), layer(x).flip(1), rtol=1e-6, atol=1e-6)


def test_without_its_backward_branch_it_is_plain_mamba():
    layer, plain = both(divide=False), MambaMixer(6, d_state=4)
    with torch.no_grad():
        layer.backwards.D.zero_()
        layer.backwards.x_proj.weight[-4:] = 0  # C: nothing of the state is read
    shared = {"in_proj": layer.in_proj, "out_proj": layer.out_proj, "branch": layer.forwards}
    for name, module in shared.items():
        getattr(plain, name).load_state_dict(module.state_dict())
    x = torch.randn(2, 20, 6)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [BidirectionalMamba, SharedBidirectionalMamba])
def test_every_position_sees_every_other(make):
    torch.manual_seed(0)
    layer = make(6, d_state=4).double()
    x = torch.randn(8, 6, dtype=torch.float64)
    assert (influence(lambda x: layer(x[None])[0], x) != 0).all()


def test_shared_is_two_scans_of_what_the_forward_convolution_gave():
    """The whole, by its definition."""
    from shoestring.kernels.causal_conv1d import naive_causal_conv1d
    from shoestring.kernels.selective_scan import naive_selective_scan

    torch.manual_seed(0)
    layer = SharedBidirectionalMamba(6, d_state=4).double()
    with torch.no_grad():
        layer.A_log_backwards.add_(0.3)
    hidden = torch.randn(2, 11, 6, dtype=torch.float64)
    branch = layer.branch
    x, z = layer.in_proj(hidden).chunk(2, -1)
    x = naive_causal_conv1d(x, branch.conv_weight, branch.conv_bias, silu=True)
    dt, B, C = branch.select(x)
    parts = [x, dt, B, C, z]
    ys = []
    for log, turn in ((branch.A_log, False), (layer.A_log_backwards, True)):
        x, dt, B, C, z = (part.flip(1) if turn else part for part in parts)
        y, _ = naive_selective_scan(
            x, dt, -log.exp(), B, C, branch.D, z, branch.dt_proj.bias, dt_softplus=True
        )
        ys.append(y.flip(1) if turn else y)
    torch.testing.assert_close(layer(hidden), layer.out_proj((ys[0] + ys[1]) / 2))


def test_options():
    x = torch.randn(1, 9, 6)
    plain, summed, scaled = both(), both(divide=False), both(layer_scale=0.1)
    torch.testing.assert_close(summed(x), 2 * plain(x))
    torch.testing.assert_close(scaled(x), 0.1 * plain(x))
    original = both(original_init=True)
    assert (original.backwards.dt_proj.bias == 0).all()
    assert (original.forwards.dt_proj.bias < -2).all()
    assert (plain.backwards.dt_proj.bias < -2).all()


def test_bad_input():
    with pytest.raises(ValueError, match="expand=0 must be at least 1"):
        BidirectionalMamba(6, expand=0)
