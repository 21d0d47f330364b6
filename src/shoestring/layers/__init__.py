"""`nn.Module`s with a cheaper forward."""

from shoestring.layers.attention import AttendOut, attend, merge
from shoestring.layers.attention_masks import Causal, Explicit, Full, KVView, Mask, Tree
from shoestring.layers.dual_binary_linear import DualBinaryLinear, LatentDualBinaryLinear
from shoestring.layers.float_coded_linear import FloatCodedLinear
from shoestring.layers.linformer import LinformerAttention, SequenceProjection, Sharing
from shoestring.layers.low_rank_attention import LowRankSelfAttention
from shoestring.layers.low_rank_conv import LowRankConv, conv_break_even_rank
from shoestring.layers.low_rank_embedding import LowRankEmbedding
from shoestring.layers.low_rank_linear import LowRankLinear, break_even_rank, linear_of_rank
from shoestring.layers.norm import RMSNorm
from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear, PackedWeight
from shoestring.layers.parameter_hint import ParameterHint, hinted_parameters
from shoestring.layers.reordered_linear import ReorderedLinear
from shoestring.layers.rotary import LinearScaling, Llama3Scaling, Rope, YarnScaling
from shoestring.layers.row_sparse_linear import RowSparseLinear, sparse_tail
from shoestring.layers.scaled_embedding import ScaledEmbedding
from shoestring.layers.self_attention import SelfAttention
from shoestring.layers.sparse_linear import SparseLinear
from shoestring.layers.state import Recurrent, State, clone_state, reorder_state, state_bytes

__all__ = [
    "AttendOut",
    "Causal",
    "DualBinaryLinear",
    "Explicit",
    "FloatCodedLinear",
    "Full",
    "KVView",
    "LatentDualBinaryLinear",
    "LinearScaling",
    "LinformerAttention",
    "Llama3Scaling",
    "LowRankConv",
    "LowRankEmbedding",
    "LowRankLinear",
    "LowRankSelfAttention",
    "Mask",
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
    "SelfAttention",
    "SequenceProjection",
    "Sharing",
    "SparseLinear",
    "State",
    "Tree",
    "YarnScaling",
    "attend",
    "break_even_rank",
    "clone_state",
    "conv_break_even_rank",
    "hinted_parameters",
    "linear_of_rank",
    "merge",
    "reorder_state",
    "sparse_tail",
    "state_bytes",
]
