"""Models of hardware: cycles and energy of work that is given as plain data."""

from shoestring.accelerators.attention_cycles import (
    AttentionMachine,
    Cycles,
    HeadWork,
    LayerWork,
    attention_cycles,
)
from shoestring.accelerators.attention_rivals import a3_cycles, mnnfast_cycles
from shoestring.accelerators.energy import EnergyTable, OperationCounts, attention_operations, energy_joules

__all__ = [
    "AttentionMachine",
    "Cycles",
    "EnergyTable",
    "HeadWork",
    "LayerWork",
    "OperationCounts",
    "a3_cycles",
    "attention_cycles",
    "attention_operations",
    "energy_joules",
    "mnnfast_cycles",
]
