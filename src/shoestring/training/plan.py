"""How long, how fast and from which seed a model is trained: all that decides the weights but the data.

Source: Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", eq. 5.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from torch.optim import Optimizer

OptimizerFactory = Callable[..., Optimizer]
"""Called as factory(parameter_groups, lr=..., **options), like the classes of `torch.optim`."""

OPTIMIZERS = ("adafactor", "adam", "adamw", "muon", "radam", "sgd")
SCHEDULES = ("constant", "cosine", "linear")
PRECISIONS = ("bfloat16", "float32")


@dataclass(frozen=True)
class TrainingPlan:
    """Steps, optimizer, learning rate along the steps, and seed.

    learning_rate: the highest, reached after `warmup_steps` along a line; then it falls by `schedule` to
    `final_factor` times itself. weight_decay: of every parameter without a hint of its own (decoupled in
    adamw, else as torch's optimizer of that name has it). betas: of adam, adamw, muon (what
    is no matrix) and radam. optimizer: a name
    of OPTIMIZERS or a factory; optimizer_options: its further keyword arguments, e.g. {"momentum": 0.9}.
    clip_norm: largest 2-norm of all gradients together, None for no bound. accumulate: parts in which a batch
    is computed one after the other. precision: bfloat16 means autocast, the weights stay as they are.
    evaluate_every: steps between evaluations. patience: evaluations without a better value after which
    training stops; with it, the model ends with the weights of its best evaluation.

    Raises: ValueError naming the field that is out of range and what is right.
    """

    steps: int
    learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 0
    final_factor: float = 0.0
    optimizer: str | OptimizerFactory = "adamw"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    clip_norm: float | None = 1.0
    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    evaluate_every: int | None = None
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_rates()
        for name, known in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is not known; use {', '.join(known)}")
        if isinstance(self.optimizer, str) and self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer={self.optimizer!r} is not known; use {', '.join(OPTIMIZERS)}, or a factory"
            )

    def _check_counts(self) -> None:
        for name in ("steps", "accumulate", "evaluate_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be 1 or more")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} must lie within 0 .. steps={self.steps}")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be 0 or more")
        if self.patience is not None and self.evaluate_every is None:
            raise ValueError(f"patience={self.patience} counts evaluations: set evaluate_every too")

    def _check_rates(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate} must be above 0 and finite")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay={self.weight_decay} must be 0 or more and finite")
        if not 0 <= self.final_factor <= 1:
            raise ValueError(f"final_factor={self.final_factor} must lie within 0 .. 1")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm={self.clip_norm} must be above 0; use None for no bound")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must be two numbers from 0 to below 1")

    def rate_factor(self, step: int) -> float:
        """What the learning rate is multiplied by in step `step`, which counts from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        left = 0.5 * (1 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1 - done
        return self.final_factor + (1 - self.final_factor) * left

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON gives them back; a factory by its name, what JSON has not by its text."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["optimizer_options"] = dict(self.optimizer_options)
        if not isinstance(self.optimizer, str):
            values["optimizer"] = getattr(self.optimizer, "__qualname__", repr(self.optimizer))
        return json.loads(json.dumps(values, default=repr))
