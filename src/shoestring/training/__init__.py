"""Memory-lean training: steps, optimizers, strategies."""

from shoestring.training.emulated_optimizers import (
    EmulatedAdagrad,
    EmulatedAdam,
    EmulatedAdamW,
    EmulatedRMSprop,
    EmulatedSGD,
)
from shoestring.training.logit_distillation import distil_logits
from shoestring.training.plan import TrainingPlan
from shoestring.training.record import Evaluation, TrainingRecord
from shoestring.training.reverse_kl import forward_kl, reverse_kl
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
    "distil_logits",
    "forward_kl",
    "reverse_kl",
]
