"""The layers S4 and S4D: what they add to a state space, what they ask of the optimizer, what they cost."""

import pytest
import torch
from torch.nn import functional as F

from shoestring.layers.parameter_hint import hinted_parameters
from shoestring.layers.state_space import S4, S4D, diagonal_linear, random_dplr
from shoestring.yardstick.memory import LiveMemory


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [S4, S4D])
@pytest.mark.parametrize("options", [{}, {"channels": 2, "n_ssm": 2}, {"bidirectional": True}])
def test_a_layer_mixes_what_its_state_space_gives(kind, options):
    layer = kind(4, 8, **options, generator=torch.Generator().manual_seed(0))
    u = noise(2, 11, 4)
    y = layer(u)
    assert y.shape == u.shape
    torch.testing.assert_close(y, F.glu(layer.mix(F.gelu(layer.ssm(u))), dim=-1))


@pytest.mark.parametrize("kind", [S4, S4D])
def test_pieces_are_the_whole(kind):
    layer = kind(4, 16, channels=2, generator=torch.Generator().manual_seed(0)).eval()
    u = noise(2, 90, 4)
    with torch.no_grad():
        expected = layer(u)
        layer.setup_step()
        first, state = layer.prefill(u[:, :70], layer.init_state(2))
        outputs = [first]
        for x in u[:, 70:].unbind(1):
            y, state = layer.step(x, state)
            outputs.append(y.unsqueeze(1))
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_dropout_takes_a_feature_from_all_steps():
    layer = S4(64, 4, dropout=0.5)
    layer.mix.weight.data = torch.cat([torch.eye(64), torch.zeros(64, 64)])
    layer.mix.bias.data.zero_()
    torch.manual_seed(0)
    y = layer(noise(1, 20, 64))[0]
    dead = (y == 0).all(0)
    assert 16 < dead.sum() < 48
    assert (y[:, ~dead] != 0).double().mean(0).min() > 0.5


def test_the_dynamics_ask_for_a_smaller_step_and_no_decay():
    hints = {name: hint for name, _, hint in hinted_parameters(S4(4, 8))}
    for name in ("log_dt", "log_re", "im", "input", "low_rank"):
        hint = hints[f"ssm.kernel.{name}"]
        assert hint.rate(1e-2) == 1e-3
        assert hint.rate(1e-4) == 1e-4
        assert hint.decay(0.05) == 0
    assert hints["ssm.kernel.output"].rate(1e-2) == 1e-2
    assert hints["ssm.kernel.output"].decay(0.05) == 0
    assert hints["mix.weight"].decay(0.05) == 0.05


@pytest.mark.parametrize("kind", [S4, S4D])
def test_memory_of_training_grows_with_the_length(kind):
    """So few channels that even the long ones are convolved at once: blocks of them would save memory."""

    def peak(seq):
        layer, u = kind(8, 64), noise(16, seq, 8)
        layer(u)
        with LiveMemory(layer, u) as memory:
            layer(u).square().mean().backward()
        return memory.peak_dynamic_bytes

    assert 3.5 <= peak(4096) / peak(1024) <= 4.5


@pytest.mark.parametrize("kind", [S4, S4D])
def test_every_parameter_is_trained(kind):
    layer = kind(4, 8, channels=2, n_ssm=2)
    layer(noise(2, 12, 4)).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


def test_other_state_matrices_are_taken():
    control = S4(4, initial=random_dplr(6, torch.Generator().manual_seed(0)))
    assert control.ssm.kernel.d_state == 6
    assert S4D(4, initial=diagonal_linear(10)).ssm.kernel.d_state == 10


def test_seeds_decide_the_state_space():
    one, same = (S4(4, 8, generator=torch.Generator().manual_seed(5)).ssm.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], same[name]) for name in one)


@pytest.mark.parametrize("kind", [S4, S4D])
def test_odd_states_are_refused(kind):
    with pytest.raises(ValueError, match="d_state=5 must be even"):
        kind(4, 5)
