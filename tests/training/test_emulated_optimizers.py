import pytest
import torch
from torch import nn, optim

from shoestring.numbers.formats import named_format
from shoestring.numbers.rounder import Rounder
from shoestring.numbers.rounding_bits import Rounding
from shoestring.training.emulated_optimizers import (
    EmulatedAdagrad,
    EmulatedAdam,
    EmulatedAdamW,
    EmulatedRMSprop,
    EmulatedSGD,
)

BF16 = Rounder(named_format("bfloat16"))
PAIRS = [
    (EmulatedSGD, optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (EmulatedSGD, optim.SGD, {"lr": 0.1}),
    (EmulatedAdam, optim.Adam, {"lr": 0.01, "amsgrad": True}),
    (EmulatedAdamW, optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    (EmulatedRMSprop, optim.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.5}),
    (EmulatedAdagrad, optim.Adagrad, {"lr": 0.1}),
]


def train(kind, steps=6, **options):
    """Parameters and optimizer after a few steps on a fixed problem."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
    optimizer = kind(model.parameters(), **options)
    x, y = torch.randn(16, 5), torch.randn(16, 1)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    return list(model.parameters()), optimizer


@pytest.mark.parametrize(("emulated", "native", "options"), PAIRS)
def test_without_rounders_it_is_the_native_optimizer(emulated, native, options):
    ours, optimizer = train(emulated, **options)
    theirs, reference = train(native, **options)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
        assert optimizer.state[a].keys() == reference.state[b].keys()
        for name, value in reference.state[b].items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(optimizer.state[a][name], value)


@pytest.mark.parametrize(("emulated", "native", "options"), PAIRS)
def test_every_state_is_a_number_of_the_format_and_the_step_count_is_not_touched(emulated, native, options):
    options = options | {"centered": False} if "centered" in options else options
    coarse = Rounder(named_format("e5m2"))
    parameters, optimizer = train(emulated, state_rounder=coarse, **options)
    reference, native_optimizer = train(native, **options)
    for parameter, other in zip(parameters, reference, strict=True):
        names = {n for n, v in native_optimizer.state[other].items() if isinstance(v, torch.Tensor)}
        for name in names & set(emulated.state_names):
            value = optimizer.state[parameter][name]
            assert torch.equal(value, coarse(value))
            assert not torch.equal(value, native_optimizer.state[other][name])
        assert names <= {*emulated.state_names, "step"}
        if "step" in optimizer.state[parameter]:
            assert float(optimizer.state[parameter]["step"]) == 6
    assert not torch.equal(parameters[0], coarse(parameters[0]))


def test_the_second_step_starts_from_the_rounded_state():
    """Against the update rule written out: m = rd(0.9 m + g), w = w - 0.1 m before m is rounded."""
    coarse = Rounder(named_format("e5m2"))
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = EmulatedSGD([weight], lr=0.1, momentum=0.9, state_rounder=coarse)
    expected_weight, momentum = 1.0, 0.0
    for step in range(5):
        gradient = 0.37 * (step + 1)
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        momentum = gradient if step == 0 else 0.9 * momentum + gradient
        expected_weight -= 0.1 * momentum
        momentum = float(coarse(torch.tensor([momentum], dtype=torch.float64)))
        assert weight.item() == pytest.approx(expected_weight, rel=1e-14)
        assert float(optimizer.state[weight]["momentum_buffer"]) == momentum


def test_one_state_may_be_rounded_and_another_not():
    parameters, optimizer = train(EmulatedAdam, state_rounder={"exp_avg": BF16}, lr=0.01)
    state = optimizer.state[parameters[0]]
    assert torch.equal(state["exp_avg"], BF16(state["exp_avg"]))
    assert not torch.equal(state["exp_avg_sq"], BF16(state["exp_avg_sq"]))


def test_an_unknown_state_is_named():
    with pytest.raises(
        ValueError, match="EmulatedSGD keeps no state 'exp_avg'; its states are momentum_buffer"
    ):
        train(EmulatedSGD, lr=0.1, state_rounder={"exp_avg": BF16})


def drift(mode, steps=400):
    """How far weights of 1 in bfloat16 get by steps of 2^-12, a 32nd of their spacing upwards."""
    weight = nn.Parameter(torch.ones(500))
    optimizer = EmulatedSGD([weight], lr=1.0, weight_rounder=Rounder(named_format("bfloat16"), mode, seed=7))
    for _ in range(steps):
        weight.grad = torch.full_like(weight, -(2.0**-12))
        optimizer.step()
    assert torch.equal(weight, BF16(weight))
    return float(weight.detach().mean()) - 1


def test_tiny_updates_are_lost_to_nearest_and_survive_stochastic_rounding():
    assert drift(Rounding.NEAREST_EVEN) == 0.0
    # Each of 500 weights makes 400 draws of p = 1/32 for a step of 2^-7: the mean's deviation is known.
    deviation = 2.0**-7 * (400 * (1 / 32) * (31 / 32) / 500) ** 0.5
    assert abs(drift(Rounding.STOCHASTIC) - 400 * 2.0**-12) < 4 * deviation


def test_a_parameter_without_a_gradient_is_left_alone():
    used, unused = nn.Parameter(torch.tensor([1.1])), nn.Parameter(torch.tensor([1.1]))
    optimizer = EmulatedSGD([used, unused], lr=0.0, weight_rounder=BF16)
    used.grad = torch.zeros(1)
    optimizer.step()
    assert unused.item() == pytest.approx(1.1)
    assert torch.equal(used, BF16(used))


def test_the_closure_is_called_and_its_loss_returned():
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = EmulatedAdamW([weight], lr=0.1, state_rounder=BF16)

    def closure():
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure)) == 4.0
    assert weight.item() < 2.0


def test_states_travel_through_a_state_dictionary():
    parameters, optimizer = train(EmulatedAdam, state_rounder=BF16, lr=0.01)
    other = EmulatedAdam(
        [p.detach().clone().requires_grad_() for p in parameters], lr=0.01, state_rounder=BF16
    )
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(
        other.state[other.param_groups[0]["params"][0]]["exp_avg"], optimizer.state[parameters[0]]["exp_avg"]
    )
