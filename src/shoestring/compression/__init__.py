"""A trained model in, a smaller one out: recipes, calibration, saved folders."""

from shoestring.compression.activation_ranges import KullbackLeibler, MeanSquare, MinMax, Percentile
from shoestring.compression.apply import Slot, apply, plan, rewrite_slot, slots, stored_bytes
from shoestring.compression.calibration import Calibration, capture, capture_groups
from shoestring.compression.conv_bn_fusion import fuse_conv_bn
from shoestring.compression.emulation import emulate, emulate_static
from shoestring.compression.gguf_export import export_gguf, export_gguf_q8
from shoestring.compression.group_quantize import GPTQ, PackedRecipe, RoundToNearest
from shoestring.compression.kv_quantize import KVQuantize
from shoestring.compression.low_rank import ActivationAwareLowRank, LowRank
from shoestring.compression.pruning import (
    MagnitudePrune,
    SparseGPT,
    StoreSparse,
    Wanda,
    global_magnitude,
    prune_in_place,
)
from shoestring.compression.recipe import ModelRecipe, ModuleRecipe, Needs, Recipe
from shoestring.compression.saved_folder import load, read_recipe, save
from shoestring.compression.sequential import apply_in_sequence

__all__ = [
    "GPTQ",
    "ActivationAwareLowRank",
    "Calibration",
    "KVQuantize",
    "KullbackLeibler",
    "LowRank",
    "MagnitudePrune",
    "MeanSquare",
    "MinMax",
    "ModelRecipe",
    "ModuleRecipe",
    "Needs",
    "PackedRecipe",
    "Percentile",
    "Recipe",
    "RoundToNearest",
    "Slot",
    "SparseGPT",
    "StoreSparse",
    "Wanda",
    "apply",
    "apply_in_sequence",
    "capture",
    "capture_groups",
    "emulate",
    "emulate_static",
    "export_gguf",
    "export_gguf_q8",
    "fuse_conv_bn",
    "global_magnitude",
    "load",
    "plan",
    "prune_in_place",
    "read_recipe",
    "rewrite_slot",
    "save",
    "slots",
    "stored_bytes",
]
