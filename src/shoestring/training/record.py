"""What came out of a training run, apart from the weights."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Evaluation:
    """The value of the evaluation after `steps` steps; lower is better."""

    steps: int
    value: float


@dataclass(frozen=True)
class TrainingRecord:
    """The loss of every step and every evaluation, also of those before a resume.

    seconds: of training and evaluation, over all resumed runs. stopped: "patience" when it stopped early.
    resumed_from: steps that were already done when this process began.
    """

    losses: tuple[float, ...]
    evaluations: tuple[Evaluation, ...] = ()
    seconds: float = 0.0
    stopped: Literal["finished", "patience"] = "finished"
    resumed_from: int = 0

    @property
    def steps(self) -> int:
        """Steps that were made."""
        return len(self.losses)

    @property
    def best(self) -> Evaluation | None:
        """The evaluation of the lowest value, the earliest of equals; None without evaluations."""
        return min(self.evaluations, key=lambda one: one.value, default=None)
