"""State space layers: linear recurrences with a long memory, computed as convolutions."""

from shoestring.layers.state_space.hippo import (
    DiagonalPlusLowRank,
    diagonal_legs,
    diagonal_linear,
    dplr_legs,
    hippo_legs,
    random_dplr,
)
from shoestring.layers.state_space.s4 import S4, S4D, StateSpaceLayer
from shoestring.layers.state_space.s4_kernel import S4Kernel
from shoestring.layers.state_space.s4d_kernel import S4DKernel
from shoestring.layers.state_space.state_space import StateSpace

__all__ = [
    "S4",
    "S4D",
    "DiagonalPlusLowRank",
    "S4DKernel",
    "S4Kernel",
    "StateSpace",
    "StateSpaceLayer",
    "diagonal_legs",
    "diagonal_linear",
    "dplr_legs",
    "hippo_legs",
    "random_dplr",
]
