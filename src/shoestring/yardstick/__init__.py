"""What is measured and how: memory, FLOPs, paired time, quality, and the one form of every result."""

from shoestring.yardstick.comparison import Comparison, Effort, Row
from shoestring.yardstick.environment import Environment
from shoestring.yardstick.timing import InterleavedTimes, PairedTime, time_interleaved, time_pair

__all__ = [
    "Comparison",
    "Effort",
    "Environment",
    "InterleavedTimes",
    "PairedTime",
    "Row",
    "time_interleaved",
    "time_pair",
]
