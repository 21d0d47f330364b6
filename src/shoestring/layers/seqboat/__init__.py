"""SeqBoat: a moving average over every token, and attention over those that ask for it."""

from shoestring.layers.seqboat.attention_reach import Chunks, Everywhere, Window
from shoestring.layers.seqboat.compression_index import CompressedPlaces
from shoestring.layers.seqboat.ema import DampedEMA
from shoestring.layers.seqboat.gated_attention_unit import GatedAttentionUnit
from shoestring.layers.seqboat.seqboat import SeqBoat
from shoestring.layers.seqboat.sparse_modular_activation import RouterOptions, SparseModularActivation

__all__ = [
    "Chunks",
    "CompressedPlaces",
    "DampedEMA",
    "Everywhere",
    "GatedAttentionUnit",
    "RouterOptions",
    "SeqBoat",
    "SparseModularActivation",
    "Window",
]
