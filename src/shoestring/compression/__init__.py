"""A trained model in, a smaller one out: recipes, calibration, saved folders."""

from shoestring.compression.apply import Slot, apply, plan, rewrite_slot, slots, stored_bytes
from shoestring.compression.calibration import Calibration
from shoestring.compression.group_quantize import PackedRecipe, RoundToNearest
from shoestring.compression.recipe import ModelRecipe, ModuleRecipe, Needs, Recipe

__all__ = [
    "Calibration",
    "ModelRecipe",
    "ModuleRecipe",
    "Needs",
    "PackedRecipe",
    "Recipe",
    "RoundToNearest",
    "Slot",
    "apply",
    "plan",
    "rewrite_slot",
    "slots",
    "stored_bytes",
]
