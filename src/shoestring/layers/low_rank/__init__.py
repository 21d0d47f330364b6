"""Layers whose matrices are products of two thin ones, and attention to a few mixtures of the keys."""

from shoestring.layers.low_rank.linformer import LinformerAttention, SequenceProjection, Sharing
from shoestring.layers.low_rank.low_rank_attention import LowRankSelfAttention
from shoestring.layers.low_rank.low_rank_conv import LowRankConv, conv_break_even_rank
from shoestring.layers.low_rank.low_rank_embedding import LowRankEmbedding
from shoestring.layers.low_rank.low_rank_linear import LowRankLinear, break_even_rank, linear_of_rank

__all__ = [
    "LinformerAttention",
    "LowRankConv",
    "LowRankEmbedding",
    "LowRankLinear",
    "LowRankSelfAttention",
    "SequenceProjection",
    "Sharing",
    "break_even_rank",
    "conv_break_even_rank",
    "linear_of_rank",
]
