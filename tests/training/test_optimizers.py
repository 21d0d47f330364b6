import pytest
import torch
from torch import nn

from shoestring.layers.parameter_hint import ParameterHint
from shoestring.training import TrainingPlan
from shoestring.training.checkpoint import optimizer_tensors, restore_optimizer
from shoestring.training.optimizers import build_optimizer, set_rates


class Hinted(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Linear(3, 3)
        self.poles = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(1))
        self.parameter_hints = {
            "poles": ParameterHint(largest_learning_rate=1e-3, weight_decay=0.0),
            "scale": ParameterHint(learning_rate=0.5),
        }


def settings_of(optimizer, model):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_hints_decide_rate_and_decay_and_the_schedule_scales_them_all():
    model = Hinted()
    optimizer = build_optimizer(model, TrainingPlan(1, 1e-2, weight_decay=0.1))
    expected = {
        "main.weight": (1e-2, 0.1),
        "main.bias": (1e-2, 0.1),
        "poles": (1e-3, 0.0),
        "scale": (0.5, 0.1),
    }
    assert settings_of(optimizer, model) == expected
    for _ in range(2):  # of the highest rate, not of the last one
        set_rates(optimizer, 0.5)
        assert settings_of(optimizer, model) == {
            k: (rate / 2, decay) for k, (rate, decay) in expected.items()
        }


def test_muon_steps_matrices_by_their_singular_vectors_and_the_rest_as_adamw():
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    plan = TrainingPlan(1, 0.02, optimizer="muon")
    optimizer = build_optimizer(model, plan)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradient = torch.randn(4, 6)
    model.weight.grad, model.bias.grad = gradient.clone(), torch.randn(4)
    optimizer.step()
    step = before["weight"] - model.weight.detach()
    # The size of AdamW's steps: 0.2 · rate in the mean square, in the direction of U Vᵀ.
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    direction = torch.nn.functional.cosine_similarity(step.flatten(), (u @ v).flatten(), 0)
    assert direction > 0.95
    assert 0.5 < step.norm() / (0.2 * 0.02 * 6**0.5 * 4**0.5) < 1.5
    torch.testing.assert_close(
        (before["bias"] - model.bias.detach()).abs(), torch.full((4,), 0.002), rtol=1e-3, atol=0
    )


def test_muon_goes_on_from_what_was_saved():
    def run(stop):
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        names = {p: name for name, p in model.named_parameters()}
        optimizer = build_optimizer(model, TrainingPlan(1, 0.02, optimizer="muon"))
        for i in range(6):
            if i == stop:
                saved = optimizer_tensors(optimizer, names)
                optimizer = build_optimizer(model, TrainingPlan(1, 0.02, optimizer="muon"))
                restore_optimizer(optimizer, names, *saved)
            optimizer.zero_grad()
            model(torch.full((2, 5), i + 1.0)).square().sum().backward()
            optimizer.step()
        return model.weight.detach()

    assert torch.equal(run(3), run(None))


@pytest.mark.parametrize("name", ["adafactor", "adam", "adamw", "radam", "sgd"])
def test_an_eps_of_its_own_is_for_adam_and_its_kin(name):
    model = nn.Linear(2, 2)
    model.parameter_hints = {"weight": ParameterHint(adam_eps=0.5)}
    optimizer = build_optimizer(model, TrainingPlan(1, 1e-2, optimizer=name))
    found = {id(p): group.get("eps") for group in optimizer.param_groups for p in group["params"]}
    ours = name in ("adam", "adamw", "radam")
    assert (found[id(model.weight)] == 0.5) == ours
    assert found[id(model.bias)] != 0.5


@pytest.mark.parametrize("name", ["adafactor", "adam", "adamw", "radam", "sgd"])
def test_a_name_is_the_optimizer_of_torch(name):
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    plan = TrainingPlan(1, 1e-2, weight_decay=0.1, betas=(0.8, 0.9), optimizer=name)
    kind = {"adafactor": "Adafactor", "adam": "Adam", "adamw": "AdamW", "radam": "RAdam", "sgd": "SGD"}[name]
    options = {} if name in ("adafactor", "sgd") else {"betas": (0.8, 0.9)}
    reference = getattr(torch.optim, kind)(theirs.parameters(), lr=1e-2, weight_decay=0.1, **options)
    x = torch.randn(5, 3)
    for optimizer, model in ((build_optimizer(ours, plan), ours), (reference, theirs)):
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)


def test_a_factory_gets_groups_and_options():
    plan = TrainingPlan(1, 1e-2, optimizer=torch.optim.SGD, optimizer_options={"momentum": 0.7})
    assert build_optimizer(nn.Linear(2, 2), plan).param_groups[0]["momentum"] == 0.7
    plan = TrainingPlan(1, 1e-2, optimizer_options={"momentum": 0.7})
    with pytest.raises(TypeError, match="momentum"):
        build_optimizer(nn.Linear(2, 2), plan)


def test_a_model_without_gradients_is_refused():
    with pytest.raises(ValueError, match="nothing in Linear has gradients"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), TrainingPlan(1, 1e-2))
