"""`nn.Module`s with a cheaper forward."""

from shoestring.layers.low_rank_linear import LowRankLinear
from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear, PackedWeight

__all__ = [
    "LowRankLinear",
    "PackedEmbedding",
    "PackedLinear",
    "PackedWeight",
]
