"""What a fit is asked for and what comes out of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from shoestring.compression.cache_choice import CacheOption
from shoestring.compression.profile import Profile
from shoestring.compression.recipe import ModuleRecipe
from shoestring.compression.scale_tuning import ScaleTuning
from shoestring.compression.solver import Choice
from shoestring.compression.speed import Speed

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps of it are done, and how many there are."""


@dataclass(frozen=True)
class FitSettings:
    """How much work a fit is.

    window: tokens that are seen together. calibration_windows: taken from a text at most, spread over it.
    gradient_windows: windows whose gradients make the sensitivity.
    verification_windows: windows of the calibration text, kept from profile and tuning, on which choices are
    compared. tuning: of the scales. rounds: how often predictions may be corrected and the budget divided
    anew. speed_rounds: the same, by measured speeds. seed: of everything that is drawn. autocast: the type of
    matrix products while measuring.
    """

    window: int = 512
    calibration_windows: int = 52
    gradient_windows: int = 16
    verification_windows: int = 4
    tuning: ScaleTuning = field(default_factory=ScaleTuning)
    rounds: int = 1
    speed_rounds: int = 2
    seed: int = 0
    autocast: torch.dtype | None = None


@dataclass(frozen=True)
class Attempt:
    """One division of the budget: predicted and measured divergence (nats a token) before tuning.

    speed: None where none was asked for.
    """

    predicted: float
    measured: float
    nbytes: int
    speed: Speed | None = None


@dataclass
class Fitted:
    """A model that was rewritten to meet a budget.

    choice: what was chosen for each weight, losses as predicted at first. file_bytes: of the weights' file.
    cache: the KV cache that goes with it, None without a context. attempts: the divisions that were tried.
    tuned: measured divergence after tuning, which is undone where it did not help. profile: what was known,
    for other budgets.
    met: False if the budget was below the smallest reachable size, at which the model then is, or if the
    measured speed is below what was asked for. caches: all the caches that were compared. speed: of this
    model, measured; None where none was asked for.
    """

    model: nn.Module
    choice: Choice
    budget_bytes: int | None
    file_bytes: int
    cache: CacheOption | None
    attempts: list[Attempt]
    tuned: float
    profile: Profile
    met: bool
    caches: Sequence[CacheOption] = ()
    speed: Speed | None = None

    @property
    def total_bytes(self) -> int:
        """File and cache."""
        return self.file_bytes + (0 if self.cache is None else self.cache.nbytes)

    @property
    def recipes(self) -> dict[str, ModuleRecipe]:
        """The recipe of every weight that was rewritten, by slot name."""
        return {name: option.recipe for name, option in self.choice.options.items()}


@dataclass(frozen=True)
class Division:
    """A division of a budget that was not applied. file_bytes: an upper bound of the weights' file.

    caches: all that were compared. speed: as predicted; None where none was asked for.
    """

    choice: Choice
    cache: CacheOption | None
    file_bytes: int
    met: bool
    caches: Sequence[CacheOption] = ()
    speed: Speed | None = None
