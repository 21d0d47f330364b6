"""The Mamba-2 mixer: the transformers library's, causality, and one sequence read in three ways."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.layers.mamba2 import Mamba2Mixer
from shoestring.layers.parameter_hint import hinted_parameters
from shoestring.layers.state import Recurrent
from shoestring.yardstick.causality import leaks


def mixer(**sizes):
    torch.manual_seed(0)
    return Mamba2Mixer(6, **{"d_state": 4, "head_dim": 3, "n_groups": 2} | sizes).double()


@pytest.mark.parametrize("groups", [1, 2])
def test_parity_with_transformers(groups):
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer as Theirs

    torch.manual_seed(0)
    mine = Mamba2Mixer(24, d_state=8, head_dim=12, n_groups=groups)
    config = Mamba2Config(
        num_heads=4,
        head_dim=12,
        hidden_size=24,
        state_size=8,
        n_groups=groups,
        num_hidden_layers=1,
        chunk_size=16,
    )
    theirs = Theirs(config, 0).eval()
    with torch.no_grad():
        mine.D.normal_()
        mine.norm.weight.normal_()
        copied = {
            ("conv1d." + n[5:] if n.startswith("conv_") else n): p for n, p in mine.state_dict().items()
        }
        copied["conv1d.weight"] = copied["conv1d.weight"][:, None]
        theirs.load_state_dict(copied)
        hidden = torch.randn(2, 37, 24)
        torch.testing.assert_close(mine(hidden), theirs(hidden), rtol=1e-4, atol=1e-5)


@given(pieces=st.lists(st.integers(1, 5), min_size=1, max_size=4), d_conv=st.sampled_from([1, 2, 4]))
def test_pieces_and_steps_make_the_whole(pieces, d_conv):
    layer = mixer(d_conv=d_conv)
    assert isinstance(layer, Recurrent)
    x = torch.randn(2, sum(pieces), 6, dtype=torch.float64)
    whole = layer(x)
    state = stepped = layer.init_state(2)
    found, steps = [], []
    for piece in x.split(pieces, 1):
        y, state = layer.prefill(piece, state)
        found.append(y)
    for t in range(x.shape[1]):
        y, stepped = layer.step(x[:, t], stepped)
        steps.append(y)
    torch.testing.assert_close(torch.cat(found, 1), whole)
    torch.testing.assert_close(torch.stack(steps, 1), whole)


def test_it_is_causal():
    layer = mixer()
    x = torch.randn(9, 6, dtype=torch.float64)
    assert not leaks(lambda x: layer(x[None])[0], x).any()


def test_state_is_float32_under_autocast():
    layer = mixer().float()
    x = torch.randn(2, 9, 6)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer.prefill(x, layer.init_state(2))
    assert state["ssm"].dtype == torch.float32
    torch.testing.assert_close(y.float(), exact, rtol=0.1, atol=0.1)


def test_initial_values_and_hints():
    layer = Mamba2Mixer(512)
    assert (layer.heads, layer.head_dim, layer.d_state) == (16, 64, 16)
    assert (layer.A() <= -1).all()
    assert (layer.A() >= -16).all()
    hinted = {name for name, _, hint in hinted_parameters(layer) if hint.weight_decay == 0}
    assert hinted == {"A_log", "D", "dt_bias", "norm.weight"}


def test_bad_input():
    with pytest.raises(ValueError, match="head_dim=5 does not divide expand · d_model = 12"):
        Mamba2Mixer(6, head_dim=5)
    with pytest.raises(ValueError, match="n_groups=3 does not divide 4 heads"):
        Mamba2Mixer(6, head_dim=3, n_groups=3)
