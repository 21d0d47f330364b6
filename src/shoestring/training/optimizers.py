"""The optimizer of a plan, over a model's parameters in groups that honour their hints."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from shoestring.layers.parameter_hint import hinted_parameters
from shoestring.training.muon import OTHER_RATE, MuonWithAdamW
from shoestring.training.plan import OptimizerFactory, TrainingPlan

_CLASSES: dict[str, OptimizerFactory] = {
    "adafactor": torch.optim.Adafactor,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "muon": MuonWithAdamW,
    "radam": torch.optim.RAdam,
    "sgd": torch.optim.SGD,
}
_WITH_BETAS = ("adam", "adamw", "muon", "radam")
_WITH_EPS = ("adam", "adamw", "radam")
HIGHEST_RATE = "highest_lr"
"""Key of a group's learning rate before the schedule."""


def build_optimizer(model: nn.Module, plan: TrainingPlan) -> Optimizer:
    """The plan's optimizer for what has gradients in `model`, one group for each rate, weight decay and ε.

    Raises: ValueError if nothing in the model has gradients, or for a hint on no parameter; TypeError from
    the optimizer for an option that it does not have.
    """
    groups = parameter_groups(model, plan)
    options = dict(plan.optimizer_options)
    if not isinstance(plan.optimizer, str):
        return plan.optimizer(groups, lr=plan.learning_rate, **options)
    if plan.optimizer in _WITH_BETAS:
        options.setdefault("betas", plan.betas)
    return _CLASSES[plan.optimizer](groups, lr=plan.learning_rate, **options)


def parameter_groups(model: nn.Module, plan: TrainingPlan) -> list[dict[str, Any]]:
    """Groups as `torch.optim` takes them, each with its `highest_lr`, which the schedule scales.

    Raises: as `build_optimizer`.
    """
    by_setting: dict[tuple[float, float, float | None], list[nn.Parameter]] = {}
    for _, parameter, hint in hinted_parameters(model):
        if parameter.requires_grad:
            eps = hint.adam_eps if plan.optimizer in _WITH_EPS else None
            slower = plan.optimizer == "muon" and parameter.dim() != 2
            usual = plan.learning_rate * (OTHER_RATE if slower else 1.0)
            setting = hint.rate(usual), hint.decay(plan.weight_decay), eps
            by_setting.setdefault(setting, []).append(parameter)
    if not by_setting:
        raise ValueError(
            f"nothing in {type(model).__name__} has gradients; set requires_grad on what is trained"
        )
    return [
        {"params": parameters, "lr": rate, HIGHEST_RATE: rate, "weight_decay": decay}
        | ({} if eps is None else {"eps": eps})
        for (rate, decay, eps), parameters in by_setting.items()
    ]


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Let every group learn at its highest rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group[HIGHEST_RATE] * factor
