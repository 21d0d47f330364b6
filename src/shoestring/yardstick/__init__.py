"""What is measured and how: memory, FLOPs, paired time, quality, and the one form of every result.

Metrics of quality stand in modules of their own: `language_quality`, `decode_quality`, `bits_per_dimension`,
`bleu`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoestring.yardstick.comparison import Comparison, Effort, Row
    from shoestring.yardstick.environment import Environment
    from shoestring.yardstick.flops import CostCounter
    from shoestring.yardstick.memory import LiveMemory, tensor_bytes
    from shoestring.yardstick.process_memory import ResidentMemory, resident_memory
    from shoestring.yardstick.timing import InterleavedTimes, PairedTime, time_interleaved, time_pair

__all__ = [
    "Comparison",
    "CostCounter",
    "Effort",
    "Environment",
    "InterleavedTimes",
    "LiveMemory",
    "PairedTime",
    "ResidentMemory",
    "Row",
    "resident_memory",
    "tensor_bytes",
    "time_interleaved",
    "time_pair",
]

_HOMES = {
    "comparison": ("Comparison", "Effort", "Row"),
    "environment": ("Environment",),
    "flops": ("CostCounter",),
    "memory": ("LiveMemory", "tensor_bytes"),
    "process_memory": ("ResidentMemory", "resident_memory"),
    "timing": ("InterleavedTimes", "PairedTime", "time_interleaved", "time_pair"),
}


def __getattr__(name: str) -> Any:
    """Import torch only for what needs it: saved results are read and shown without."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
