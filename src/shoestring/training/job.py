"""A training task that is ready to run: model, data, loss, and how the result is judged and saved."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Job:
    """A model about to be trained. `metric` names what `evaluate` gives; lower is better.

    preparing_seconds: how long what is made once, and is not there yet, will take beside the steps.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    batches: Callable[[int], Any]
    metric: str
    evaluate: Callable[[nn.Module], float]
    save: Callable[[nn.Module, Path], None]
    preparing_seconds: Callable[[], float] = lambda: 0.0
