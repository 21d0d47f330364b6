"""`nn.Module`s with a cheaper forward."""

from shoestring.layers.along_axis import AlongAxis
from shoestring.layers.attention import AttendOut, attend, merge
from shoestring.layers.attention_masks import Causal, Explicit, Full, KVView, Mask, Tree
from shoestring.layers.axial_attention import AxialAttention, AxialBlocks
from shoestring.layers.dual_binary_linear import DualBinaryLinear, LatentDualBinaryLinear
from shoestring.layers.float_coded_linear import FloatCodedLinear
from shoestring.layers.kmeans import KMeansOptions, OnlineKMeans, update_after_step
from shoestring.layers.line_attention import AttentionBlock, LineAttention
from shoestring.layers.local_attention import LocalPattern, local_attention
from shoestring.layers.low_rank_linear import LowRankLinear
from shoestring.layers.norm import RMSNorm
from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear, PackedWeight
from shoestring.layers.parameter_hint import ParameterHint, hinted_parameters
from shoestring.layers.reordered_linear import ReorderedLinear
from shoestring.layers.rotary import LinearScaling, Llama3Scaling, Rope, YarnScaling
from shoestring.layers.row_sparse_linear import RowSparseLinear, sparse_tail
from shoestring.layers.scaled_embedding import ScaledEmbedding
from shoestring.layers.sparse_linear import SparseLinear
from shoestring.layers.state import Recurrent, State, clone_state, reorder_state, state_bytes

__all__ = [
    "AlongAxis",
    "AttendOut",
    "AttentionBlock",
    "AxialAttention",
    "AxialBlocks",
    "Causal",
    "DualBinaryLinear",
    "Explicit",
    "FloatCodedLinear",
    "Full",
    "KMeansOptions",
    "KVView",
    "LatentDualBinaryLinear",
    "LineAttention",
    "LinearScaling",
    "Llama3Scaling",
    "LocalPattern",
    "LowRankLinear",
    "Mask",
    "OnlineKMeans",
    "PackedEmbedding",
    "PackedLinear",
    "PackedWeight",
    "ParameterHint",
    "RMSNorm",
    "Recurrent",
    "ReorderedLinear",
    "Rope",
    "RowSparseLinear",
    "ScaledEmbedding",
    "SparseLinear",
    "State",
    "Tree",
    "YarnScaling",
    "attend",
    "clone_state",
    "hinted_parameters",
    "local_attention",
    "merge",
    "reorder_state",
    "sparse_tail",
    "state_bytes",
    "update_after_step",
]
