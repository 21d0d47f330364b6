"""A trained model in, a smaller one out: recipes, calibration, saved folders."""

from shoestring.compression.apply import Slot, apply, plan, rewrite_slot, slots, stored_bytes
from shoestring.compression.calibration import Calibration, capture, capture_groups
from shoestring.compression.gguf_export import export_gguf, export_gguf_q8
from shoestring.compression.group_quantize import GPTQ, PackedRecipe, RoundToNearest
from shoestring.compression.kv_quantize import KVQuantize
from shoestring.compression.low_rank import ActivationAwareLowRank, LowRank
from shoestring.compression.recipe import ModelRecipe, ModuleRecipe, Needs, Recipe
from shoestring.compression.saved_folder import load, read_recipe, save
from shoestring.compression.sequential import apply_in_sequence

__all__ = [
    "GPTQ",
    "ActivationAwareLowRank",
    "Calibration",
    "KVQuantize",
    "LowRank",
    "ModelRecipe",
    "ModuleRecipe",
    "Needs",
    "PackedRecipe",
    "Recipe",
    "RoundToNearest",
    "Slot",
    "apply",
    "apply_in_sequence",
    "capture",
    "capture_groups",
    "export_gguf",
    "export_gguf_q8",
    "load",
    "plan",
    "read_recipe",
    "rewrite_slot",
    "save",
    "slots",
    "stored_bytes",
]
