"""The mixer of both directions with decays by head: its mirror image, and what a position sees."""

import pytest
import torch

from shoestring.layers.bidirectional_mamba2 import BidirectionalMamba2
from shoestring.yardstick.causality import influence, leaks


def both(**options):
    torch.manual_seed(0)
    return BidirectionalMamba2(6, **{"d_state": 4, "head_dim": 3} | options).double()


@pytest.mark.parametrize("seq", [1, 2, 7, 70])
def test_a_mirrored_sequence_with_directions_swapped(seq):
    layer, swapped = both(), both()
    swapped.load_state_dict(layer.state_dict())
    swapped.forwards, swapped.backwards = swapped.backwards, swapped.forwards
    x = torch.randn(2, seq, 6, dtype=torch.float64)
    torch.testing.assert_close(swapped(x.flip(1)), layer(x).flip(1), rtol=1e-6, atol=1e-6)


def test_a_direction_is_causal_and_both_see_everything():
    layer = both()
    x = torch.randn(7, 6, dtype=torch.float64)
    assert (influence(lambda x: layer(x[None])[0], x) != 0).all()
    inner = torch.randn(7, 12, dtype=torch.float64)
    branch = layer.forwards
    assert not leaks(lambda x: branch(x[None], inner[None])[0], inner).any()
    torch.testing.assert_close(both(divide=False)(x[None]), 2 * layer(x[None]))


def test_bad_input():
    with pytest.raises(ValueError, match="head_dim=5 does not divide expand · d_model = 12"):
        both(head_dim=5)
