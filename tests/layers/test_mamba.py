"""The Mamba mixer: the transformers library's, causality, and one sequence read in three ways."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.layers.mamba import MambaMixer
from shoestring.layers.parameter_hint import hinted_parameters
from shoestring.layers.selective_branch import initial_dt_bias
from shoestring.layers.state import Recurrent, state_bytes
from shoestring.yardstick.causality import influence, leaks


def mixer(d_model=6, dtype=torch.float64, seed=0, **sizes):
    torch.manual_seed(seed)
    return MambaMixer(d_model, **{"d_state": 4, **sizes}).to(dtype)


def test_parity_with_transformers():
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer as Theirs

    torch.manual_seed(0)
    mine = MambaMixer(24, d_state=16)
    config = MambaConfig(hidden_size=24, state_size=16, num_hidden_layers=1, use_bias=False, expand=2)
    theirs = Theirs(config, 0).eval()
    branch = mine.branch
    with torch.no_grad():
        copied = {
            "conv1d.weight": branch.conv_weight[:, None], "conv1d.bias": branch.conv_bias,
            "A_log": branch.A_log + 0.1 * torch.randn(48, 16), "D": branch.D * torch.randn(48),
        }  # fmt: skip
        branch.A_log.copy_(copied["A_log"])
        branch.D.copy_(copied["D"])
        for name in ("in_proj", "out_proj"):
            copied[f"{name}.weight"] = getattr(mine, name).weight
        for name in ("x_proj.weight", "dt_proj.weight", "dt_proj.bias"):
            copied[name] = branch.get_parameter(name)
        theirs.load_state_dict(copied)
        hidden = torch.randn(2, 37, 24)
        torch.testing.assert_close(mine(hidden), theirs(hidden), rtol=1e-5, atol=1e-5)


@given(pieces=st.lists(st.integers(1, 5), min_size=1, max_size=4), d_conv=st.sampled_from([1, 2, 4]))
def test_pieces_and_steps_make_the_whole(pieces, d_conv):
    """Prompts shorter than the convolution included."""
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
    for name in state:
        torch.testing.assert_close(state[name], stepped[name])
    assert state_bytes(state) == state_bytes(layer.init_state(2))


def test_causality_of_both_directions():
    layer = mixer()
    x = torch.randn(9, 6, dtype=torch.float64)
    assert not leaks(lambda x: layer(x[None])[0], x).any()
    backwards = influence(lambda x: layer(x[None], reverse=True)[0], x) != 0
    assert torch.equal(backwards, torch.ones(9, 9, dtype=torch.bool).triu())


def test_state_is_float32_under_autocast():
    layer = mixer(dtype=torch.float32)
    x = torch.randn(2, 9, 6)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer.prefill(x, layer.init_state(2))
    assert state["ssm"].dtype == torch.float32
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)
    assert layer.init_state(1, dtype=torch.bfloat16)["ssm"].dtype == torch.float32


def test_initial_values_and_hints():
    layer = MambaMixer(64, d_state=16)
    branch = layer.branch
    torch.testing.assert_close(branch.A(), -torch.arange(1.0, 17).expand(128, 16))
    assert branch.dt_rank == 4
    assert branch.dt_proj.weight.abs().max() <= 0.5
    dt = torch.nn.functional.softplus(initial_dt_bias(5000))
    assert 1e-3 * 0.999 <= float(dt.min()) < 1.3e-3
    assert 0.08 < float(dt.max()) <= 0.1 * 1.001
    assert float(dt.log().mean()) == pytest.approx(-4.605, abs=0.1)
    hinted = {name for name, _, hint in hinted_parameters(layer) if hint.weight_decay == 0}
    assert hinted == {"branch.A_log", "branch.D"}


def test_bad_input():
    with pytest.raises(ValueError, match="d_state=0 must be at least 1"):
        MambaMixer(8, d_state=0)
