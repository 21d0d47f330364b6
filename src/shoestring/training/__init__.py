"""Memory-lean training: steps, optimizers, strategies."""

from shoestring.training.emulated_optimizers import (
    EmulatedAdagrad,
    EmulatedAdam,
    EmulatedAdamW,
    EmulatedRMSprop,
    EmulatedSGD,
)
from shoestring.training.plan import TrainingPlan
from shoestring.training.record import Evaluation, TrainingRecord
from shoestring.training.trainer import Trainer
from shoestring.training.weight_average import WeightAverage

__all__ = [
    "EmulatedAdagrad",
    "EmulatedAdam",
    "EmulatedAdamW",
    "EmulatedRMSprop",
    "EmulatedSGD",
    "Evaluation",
    "Trainer",
    "TrainingPlan",
    "TrainingRecord",
    "WeightAverage",
]
