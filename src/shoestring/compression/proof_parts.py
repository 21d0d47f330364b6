"""The parts of a proof: what was chosen, what other budgets would give, what was asked for."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from shoestring.compression.cache_choice import CacheOption
from shoestring.compression.division import fixed_bytes
from shoestring.compression.fitted import FitSettings, Fitted
from shoestring.compression.solver import BudgetTooSmall, Choice, solve
from shoestring.compression.speed import Speed
from shoestring.compression.weight_matrix import matrix_shape

CURVE_POINTS = 16


def layers(model: nn.Module, choice: Choice) -> list[dict[str, Any]]:
    """Of each weight: its shape, recipe, bytes and predicted loss (nats a token)."""
    layers = []
    for name, option in choice.options.items():
        rows, cols = matrix_shape(model.get_submodule(name))
        layers.append(
            {
                "name": name,
                "rows": rows,
                "cols": cols,
                "recipe": option.recipe.to_json(),
                "bytes": option.nbytes,
                "bits_per_weight": 8 * option.nbytes / (rows * cols),
                "predicted_loss": option.loss,
            }
        )
    return layers


def curve(model: nn.Module, fitted: Fitted) -> list[dict[str, int | float]]:
    """Predicted divergence over budgets for the weights' file, from the smallest to the largest choice."""
    options = {name: own for name, own in fitted.profile.options.items() if own}
    fixed = fixed_bytes(model, options)
    smallest = fixed + sum(min(o.nbytes for o in own) for own in options.values())
    largest = fixed + sum(max(o.nbytes for o in own) for own in options.values())
    points: list[dict[str, int | float]] = []
    for budget in np.geomspace(smallest, largest, CURVE_POINTS).astype(int).tolist():
        try:
            choice = solve(options, budget - fixed)
        except BudgetTooSmall:
            continue
        points.append({"bytes": fixed + choice.nbytes, "predicted": choice.loss})
    return points


def speed_json(speed: Speed | None) -> dict[str, Any] | None:
    """Tokens a second as asked for, predicted and measured, and whether that is met; None without any."""
    return None if speed is None else {**asdict(speed), "met": speed.met}


def recipe_json(cache: CacheOption | None) -> dict[str, Any] | None:
    """The recipe of a cache; None for one in full."""
    return None if cache is None or cache.recipe is None else cache.recipe.to_json()


def cache_json(option: CacheOption) -> dict[str, Any]:
    """A cache that was compared."""
    return {"cache": recipe_json(option), "bytes": option.nbytes, "predicted_loss": option.loss}


def settings_json(settings: FitSettings) -> dict[str, Any]:
    """The settings as JSON has them."""
    return {**asdict(settings), "autocast": _type_name(settings.autocast)}


def _type_name(dtype: torch.dtype | None) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")
