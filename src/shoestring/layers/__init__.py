"""`nn.Module`s with a cheaper forward."""

from shoestring.layers.attention import AttendOut, attend, merge
from shoestring.layers.attention_masks import Causal, Explicit, Full, KVView, Mask, Tree
from shoestring.layers.axial import AlongAxis, AttentionBlock, AxialAttention, AxialBlocks, LineAttention
from shoestring.layers.drop_path import DropPath
from shoestring.layers.dual_binary_linear import DualBinaryLinear, LatentDualBinaryLinear
from shoestring.layers.float_coded_linear import FloatCodedLinear
from shoestring.layers.kmeans import KMeansOptions, OnlineKMeans, update_after_step
from shoestring.layers.local_attention import LocalPattern, local_attention
from shoestring.layers.long_convolution import (
    ButterflyOptions,
    FeatureLongConv,
    H3LongConv,
    KernelRegulariser,
    LearnedButterfly,
    LongConv,
    LongFilter,
    SmoothFrequency,
    SmoothTime,
    geometric_kernel,
    random_kernel,
    squash,
)
from shoestring.layers.low_rank import (
    LinformerAttention,
    LowRankConv,
    LowRankEmbedding,
    LowRankLinear,
    LowRankSelfAttention,
    SequenceProjection,
    Sharing,
    break_even_rank,
    conv_break_even_rank,
    linear_of_rank,
)
from shoestring.layers.mamba import (
    BidirectionalMamba,
    BidirectionalMamba2,
    Mamba2Mixer,
    MambaMixer,
    SharedBidirectionalMamba,
)
from shoestring.layers.mamba.grouped_mamba import (
    GroupedMambaMixer,
    GroupedSsdMixer,
    MambaShape,
    ScanKind,
    grouped_mixer,
)
from shoestring.layers.norm import RMSNorm
from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear, PackedWeight
from shoestring.layers.parameter_hint import ParameterHint, hinted_parameters
from shoestring.layers.patches import ClassToken, FeaturePyramid, PatchEmbedding, PatchTokens
from shoestring.layers.reordered_linear import ReorderedLinear
from shoestring.layers.rotary import LinearScaling, Llama3Scaling, Rope, YarnScaling
from shoestring.layers.routing import HeadSplit, RoutingAttention, RoutingOptions
from shoestring.layers.row_sparse_linear import RowSparseLinear, sparse_tail
from shoestring.layers.scaled_embedding import ScaledEmbedding
from shoestring.layers.self_attention import SelfAttention
from shoestring.layers.seqboat import (
    Chunks,
    CompressedPlaces,
    DampedEMA,
    Everywhere,
    GatedAttentionUnit,
    RouterOptions,
    SeqBoat,
    SparseModularActivation,
    Window,
)
from shoestring.layers.sparse_linear import SparseLinear
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
    "GroupedMambaMixer",
    "GroupedSsdMixer",
    "H3LongConv",
    "HeadSplit",
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
    "MambaShape",
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
    "RoutingAttention",
    "RoutingOptions",
    "RowSparseLinear",
    "ScaledEmbedding",
    "ScanKind",
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
    "grouped_mixer",
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
