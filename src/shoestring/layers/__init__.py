"""`nn.Module`s with a cheaper forward."""

from shoestring.layers.along_axis import AlongAxis
from shoestring.layers.attention import AttendOut, attend, merge
from shoestring.layers.attention_masks import Causal, Explicit, Full, KVView, Mask, Tree
from shoestring.layers.attention_reach import Chunks, Everywhere, Window
from shoestring.layers.axial_attention import AxialAttention, AxialBlocks
from shoestring.layers.bidirectional_mamba import BidirectionalMamba, SharedBidirectionalMamba
from shoestring.layers.bidirectional_mamba2 import BidirectionalMamba2
from shoestring.layers.compression_index import CompressedPlaces
from shoestring.layers.drop_path import DropPath
from shoestring.layers.dual_binary_linear import DualBinaryLinear, LatentDualBinaryLinear
from shoestring.layers.ema import DampedEMA
from shoestring.layers.feature_pyramid import FeaturePyramid
from shoestring.layers.float_coded_linear import FloatCodedLinear
from shoestring.layers.gated_attention_unit import GatedAttentionUnit
from shoestring.layers.h3 import H3LongConv
from shoestring.layers.kmeans import KMeansOptions, OnlineKMeans, update_after_step
from shoestring.layers.learned_butterfly import ButterflyOptions, LearnedButterfly
from shoestring.layers.line_attention import AttentionBlock, LineAttention
from shoestring.layers.linformer import LinformerAttention, SequenceProjection, Sharing
from shoestring.layers.local_attention import LocalPattern, local_attention
from shoestring.layers.long_convolution import FeatureLongConv, LongConv, LongFilter
from shoestring.layers.low_rank_attention import LowRankSelfAttention
from shoestring.layers.low_rank_conv import LowRankConv, conv_break_even_rank
from shoestring.layers.low_rank_embedding import LowRankEmbedding
from shoestring.layers.low_rank_linear import LowRankLinear, break_even_rank, linear_of_rank
from shoestring.layers.mamba import MambaMixer
from shoestring.layers.mamba2 import Mamba2Mixer
from shoestring.layers.norm import RMSNorm
from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear, PackedWeight
from shoestring.layers.parameter_hint import ParameterHint, hinted_parameters
from shoestring.layers.patch_embedding import PatchEmbedding
from shoestring.layers.patch_tokens import ClassToken, PatchTokens
from shoestring.layers.reordered_linear import ReorderedLinear
from shoestring.layers.rotary import LinearScaling, Llama3Scaling, Rope, YarnScaling
from shoestring.layers.row_sparse_linear import RowSparseLinear, sparse_tail
from shoestring.layers.scaled_embedding import ScaledEmbedding
from shoestring.layers.self_attention import SelfAttention
from shoestring.layers.seqboat import SeqBoat
from shoestring.layers.sparse_linear import SparseLinear
from shoestring.layers.sparse_modular_activation import RouterOptions, SparseModularActivation
from shoestring.layers.squash import (
    KernelRegulariser,
    SmoothFrequency,
    SmoothTime,
    geometric_kernel,
    random_kernel,
    squash,
)
from shoestring.layers.state import Recurrent, State, clone_state, reorder_state, state_bytes
from shoestring.layers.state_space import S4, S4D

__all__ = [
    "S4",
    "S4D",
    "AlongAxis",
    "AttendOut",
    "AttentionBlock",
    "AxialAttention",
    "AxialBlocks",
    "BidirectionalMamba",
    "BidirectionalMamba2",
    "ButterflyOptions",
    "Causal",
    "Chunks",
    "ClassToken",
    "CompressedPlaces",
    "DampedEMA",
    "DropPath",
    "DualBinaryLinear",
    "Everywhere",
    "Explicit",
    "FeatureLongConv",
    "FeaturePyramid",
    "FloatCodedLinear",
    "Full",
    "GatedAttentionUnit",
    "H3LongConv",
    "KMeansOptions",
    "KVView",
    "KernelRegulariser",
    "LatentDualBinaryLinear",
    "LearnedButterfly",
    "LineAttention",
    "LinearScaling",
    "LinformerAttention",
    "Llama3Scaling",
    "LocalPattern",
    "LongConv",
    "LongFilter",
    "LowRankConv",
    "LowRankEmbedding",
    "LowRankLinear",
    "LowRankSelfAttention",
    "Mamba2Mixer",
    "MambaMixer",
    "Mask",
    "OnlineKMeans",
    "PackedEmbedding",
    "PackedLinear",
    "PackedWeight",
    "ParameterHint",
    "PatchEmbedding",
    "PatchTokens",
    "RMSNorm",
    "Recurrent",
    "ReorderedLinear",
    "Rope",
    "RouterOptions",
    "RowSparseLinear",
    "ScaledEmbedding",
    "SelfAttention",
    "SeqBoat",
    "SequenceProjection",
    "SharedBidirectionalMamba",
    "Sharing",
    "SmoothFrequency",
    "SmoothTime",
    "SparseLinear",
    "SparseModularActivation",
    "State",
    "Tree",
    "Window",
    "YarnScaling",
    "attend",
    "break_even_rank",
    "clone_state",
    "conv_break_even_rank",
    "geometric_kernel",
    "hinted_parameters",
    "linear_of_rank",
    "local_attention",
    "merge",
    "random_kernel",
    "reorder_state",
    "sparse_tail",
    "squash",
    "state_bytes",
    "update_after_step",
]
