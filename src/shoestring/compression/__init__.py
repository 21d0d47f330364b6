"""A trained model in, a smaller one out: recipes, calibration, saved folders."""

from shoestring.compression.activation_ranges import KullbackLeibler, MeanSquare, MinMax, Percentile
from shoestring.compression.alpha_search import AlphaSpace, Evolution, evolve, layer_by_layer
from shoestring.compression.apply import Slot, apply, plan, rewrite_slot, slots, stored_bytes
from shoestring.compression.auto_factorize import auto_fact
from shoestring.compression.awq import AWQ
from shoestring.compression.calibration import Calibration, capture, capture_groups
from shoestring.compression.conv_bn_fusion import fuse_conv_bn
from shoestring.compression.dual_binarize import DualBinarize
from shoestring.compression.emulation import emulate, emulate_static
from shoestring.compression.float_quantize import FloatQuantize, StoredFloat
from shoestring.compression.gguf_export import export_gguf, export_gguf_q8
from shoestring.compression.group_quantize import GPTQ, PackedRecipe, RoundToNearest
from shoestring.compression.hybrid_conversion import ConversionPlan, convert_in_stages
from shoestring.compression.kv_quantize import KVQuantize, KVQuantizeTokens
from shoestring.compression.layer_importance import LayerImportance, leave_one_out
from shoestring.compression.low_rank import ActivationAwareLowRank, LowRank
from shoestring.compression.precision import Precision, PrecisionPlan, WeightKind
from shoestring.compression.pruning import (
    MagnitudePrune,
    SparseGPT,
    StoreSparse,
    Wanda,
    global_magnitude,
    prune_in_place,
)
from shoestring.compression.r_sparse import RowStore, RSparse, block_linears, r_sparse_recipes
from shoestring.compression.recipe import ModelRecipe, ModuleRecipe, Needs, Recipe
from shoestring.compression.saved_folder import load, read_recipe, save
from shoestring.compression.score_quantiles import ScoreCalibration, capture_scores
from shoestring.compression.sequential import apply_in_sequence

__all__ = [
    "AWQ",
    "GPTQ",
    "ActivationAwareLowRank",
    "AlphaSpace",
    "Calibration",
    "ConversionPlan",
    "DualBinarize",
    "Evolution",
    "FloatQuantize",
    "KVQuantize",
    "KVQuantizeTokens",
    "KullbackLeibler",
    "LayerImportance",
    "LowRank",
    "MagnitudePrune",
    "MeanSquare",
    "MinMax",
    "ModelRecipe",
    "ModuleRecipe",
    "Needs",
    "PackedRecipe",
    "Percentile",
    "Precision",
    "PrecisionPlan",
    "RSparse",
    "Recipe",
    "RoundToNearest",
    "RowStore",
    "ScoreCalibration",
    "Slot",
    "SparseGPT",
    "StoreSparse",
    "StoredFloat",
    "Wanda",
    "WeightKind",
    "apply",
    "apply_in_sequence",
    "auto_fact",
    "block_linears",
    "capture",
    "capture_groups",
    "capture_scores",
    "convert_in_stages",
    "emulate",
    "emulate_static",
    "evolve",
    "export_gguf",
    "export_gguf_q8",
    "fuse_conv_bn",
    "global_magnitude",
    "layer_by_layer",
    "leave_one_out",
    "load",
    "plan",
    "prune_in_place",
    "r_sparse_recipes",
    "read_recipe",
    "rewrite_slot",
    "save",
    "slots",
    "stored_bytes",
]
