"""Memory-lean training: steps, optimizers, strategies."""

from shoestring.training.emulated_optimizers import (
    EmulatedAdagrad,
    EmulatedAdam,
    EmulatedAdamW,
    EmulatedRMSprop,
    EmulatedSGD,
)

__all__ = [
    "EmulatedAdagrad",
    "EmulatedAdam",
    "EmulatedAdamW",
    "EmulatedRMSprop",
    "EmulatedSGD",
]
