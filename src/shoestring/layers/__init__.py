"""`nn.Module`s with a cheaper forward."""

from shoestring.layers.attention import AttendOut, attend, merge
from shoestring.layers.attention_masks import Causal, Explicit, Full, KVView, Mask, Tree
from shoestring.layers.bidirectional_mamba import BidirectionalMamba, SharedBidirectionalMamba
from shoestring.layers.bidirectional_mamba2 import BidirectionalMamba2
from shoestring.layers.drop_path import DropPath
from shoestring.layers.dual_binary_linear import DualBinaryLinear, LatentDualBinaryLinear
from shoestring.layers.feature_pyramid import FeaturePyramid
from shoestring.layers.float_coded_linear import FloatCodedLinear
from shoestring.layers.grouped_mamba import (
    GroupedMambaMixer,
    GroupedSsdMixer,
    MambaShape,
    ScanKind,
    grouped_mixer,
)
from shoestring.layers.low_rank_linear import LowRankLinear
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
from shoestring.layers.sparse_linear import SparseLinear
from shoestring.layers.state import Recurrent, State, clone_state, reorder_state, state_bytes

__all__ = [
    "AttendOut",
    "BidirectionalMamba",
    "BidirectionalMamba2",
    "Causal",
    "ClassToken",
    "DropPath",
    "DualBinaryLinear",
    "Explicit",
    "FeaturePyramid",
    "FloatCodedLinear",
    "Full",
    "GroupedMambaMixer",
    "GroupedSsdMixer",
    "KVView",
    "LatentDualBinaryLinear",
    "LinearScaling",
    "Llama3Scaling",
    "LowRankLinear",
    "Mamba2Mixer",
    "MambaMixer",
    "MambaShape",
    "Mask",
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
    "RowSparseLinear",
    "ScaledEmbedding",
    "ScanKind",
    "SharedBidirectionalMamba",
    "SparseLinear",
    "State",
    "Tree",
    "YarnScaling",
    "attend",
    "clone_state",
    "grouped_mixer",
    "hinted_parameters",
    "merge",
    "reorder_state",
    "sparse_tail",
    "state_bytes",
]
