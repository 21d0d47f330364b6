"""What is measured and how: memory, FLOPs, paired time, quality, and the one form of every result."""

from shoestring.yardstick.bits_per_dimension import bits_per_dimension, mean_bits
from shoestring.yardstick.comparison import Comparison, Effort, Row
from shoestring.yardstick.decode_quality import (
    DecodeQuality,
    RecallQuality,
    decode_quality,
    recall_quality,
)
from shoestring.yardstick.environment import Environment
from shoestring.yardstick.flops import CostCounter
from shoestring.yardstick.memory import LiveMemory, tensor_bytes
from shoestring.yardstick.process_memory import ResidentMemory, resident_memory
from shoestring.yardstick.timing import InterleavedTimes, PairedTime, time_interleaved, time_pair

__all__ = [
    "Comparison",
    "CostCounter",
    "DecodeQuality",
    "Effort",
    "Environment",
    "InterleavedTimes",
    "LiveMemory",
    "PairedTime",
    "RecallQuality",
    "ResidentMemory",
    "Row",
    "bits_per_dimension",
    "decode_quality",
    "mean_bits",
    "recall_quality",
    "resident_memory",
    "tensor_bytes",
    "time_interleaved",
    "time_pair",
]
