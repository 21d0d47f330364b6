"""What a fitted model is to run in: the formats it may be given, and what the budget must hold besides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from shoestring.compression.gguf_export import gguf_extra_bytes, gguf_tensor_bytes
from shoestring.compression.menu import default_menu, gguf_menu, menu_of
from shoestring.compression.recipe import ModuleRecipe


@dataclass(frozen=True)
class Target:
    """Where a model will run.

    name: as proofs call it. menu: the recipes among which a budget is divided. extra_bytes: upper bound, for
    the original model, of what the other form takes beyond model.safetensors. exported_bytes: of a fitted
    model in that form; None where there is none.
    """

    name: str
    menu: Callable[[], Sequence[ModuleRecipe]]
    extra_bytes: Callable[[nn.Module], int]
    exported_bytes: Callable[[nn.Module], int] | None


SHOESTRING = Target("shoestring", default_menu, lambda model: 0, None)


def shoestring_target(families: Sequence[str]) -> Target:
    """The target whose menu holds these families of recipes; `SHOESTRING` for the default one alone."""
    if tuple(families) == ("default",):
        return SHOESTRING
    name = f"{SHOESTRING.name} with {', '.join(families)}"
    return replace(SHOESTRING, name=name, menu=lambda: menu_of(families))


LLAMA_CPP = Target("llama.cpp", gguf_menu, gguf_extra_bytes, gguf_tensor_bytes)
"""Formats that llama.cpp has. The budget holds model.safetensors, and the GGUF's tensor data as well."""
