"""`nn.Module`s with a cheaper forward."""

from shoestring.layers.attention import AttendOut, attend, merge
from shoestring.layers.attention_masks import Causal, Explicit, Full, KVView, Mask, Tree
from shoestring.layers.attention_reach import Chunks, Everywhere, Window
from shoestring.layers.compression_index import CompressedPlaces
from shoestring.layers.dual_binary_linear import DualBinaryLinear, LatentDualBinaryLinear
from shoestring.layers.ema import DampedEMA
from shoestring.layers.float_coded_linear import FloatCodedLinear
from shoestring.layers.gated_attention_unit import GatedAttentionUnit
from shoestring.layers.local_attention import LocalPattern, local_attention
from shoestring.layers.low_rank_linear import LowRankLinear
from shoestring.layers.norm import RMSNorm
from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear, PackedWeight
from shoestring.layers.parameter_hint import ParameterHint, hinted_parameters
from shoestring.layers.reordered_linear import ReorderedLinear
from shoestring.layers.rotary import LinearScaling, Llama3Scaling, Rope, YarnScaling
from shoestring.layers.row_sparse_linear import RowSparseLinear, sparse_tail
from shoestring.layers.scaled_embedding import ScaledEmbedding
from shoestring.layers.seqboat import SeqBoat
from shoestring.layers.sparse_linear import SparseLinear
from shoestring.layers.sparse_modular_activation import RouterOptions, SparseModularActivation
from shoestring.layers.state import Recurrent, State, clone_state, reorder_state, state_bytes

__all__ = [
    "AttendOut",
    "Causal",
    "Chunks",
    "CompressedPlaces",
    "DampedEMA",
    "DualBinaryLinear",
    "Everywhere",
    "Explicit",
    "FloatCodedLinear",
    "Full",
    "GatedAttentionUnit",
    "KVView",
    "LatentDualBinaryLinear",
    "LinearScaling",
    "Llama3Scaling",
    "LocalPattern",
    "LowRankLinear",
    "Mask",
    "PackedEmbedding",
    "PackedLinear",
    "PackedWeight",
    "ParameterHint",
    "RMSNorm",
    "Recurrent",
    "ReorderedLinear",
    "Rope",
    "RouterOptions",
    "RowSparseLinear",
    "ScaledEmbedding",
    "SeqBoat",
    "SparseLinear",
    "SparseModularActivation",
    "State",
    "Tree",
    "Window",
    "YarnScaling",
    "attend",
    "clone_state",
    "hinted_parameters",
    "local_attention",
    "merge",
    "reorder_state",
    "sparse_tail",
    "state_bytes",
]
