"""What may become of each weight matrix: the recipes among which a budget is divided."""

from collections.abc import Callable, Mapping, Sequence

from shoestring.compression.apply import Slot
from shoestring.compression.dual_binarize import DualBinarize
from shoestring.compression.gguf_blocks import KINDS
from shoestring.compression.group_quantize import GPTQ, RoundToNearest
from shoestring.compression.low_rank import ActivationAwareLowRank
from shoestring.compression.pruning import SparseGPT, Wanda
from shoestring.compression.recipe import ModuleRecipe
from shoestring.numbers.grouped_affine import ZeroPoint
from shoestring.numbers.sparse_values import ValueKind

CODED = ((2, 16), (2, 32), (2, 64), (3, 16), (3, 32), (3, 64), (4, 32), (4, 64), (5, 32), (5, 64), (6, 64))
"""Bits and group sizes with 8-bit scales and stored zeros: from 2.3 to 6.2 bits a weight."""


def default_menu() -> list[ModuleRecipe]:
    """Recipes from 2.3 to 8.5 bits a weight.

    Beside GPTQ and plain rounding at each `CODED` width there are the grids of llama.cpp's Q4_1, Q5_1 and
    Q8_0, which hold a model that was shipped in them without loss.
    """
    menu: list[ModuleRecipe] = []
    for bits, group_size in CODED:
        menu.append(GPTQ(bits, group_size, ZeroPoint.INTEGER, scale_bits=8))
        menu.append(RoundToNearest(bits, group_size, ZeroPoint.INTEGER, scale_bits=8))
    menu += [RoundToNearest(bits, 32, ZeroPoint.REAL) for bits in (4, 5)]
    menu.append(RoundToNearest(8, 32, ZeroPoint.SYMMETRIC))
    return menu


def gguf_menu() -> list[ModuleRecipe]:
    """The formats of llama.cpp that `export_gguf` writes, from 4.5 (Q4_0) to 8.5 (Q8_0) bits a weight."""
    menu: list[ModuleRecipe] = []
    for form in KINDS:
        fields = form.bits, form.group_size, form.zero_point, form.scale_bits
        menu.append(RoundToNearest(*fields))
        if form.bits < 8:
            menu.append(GPTQ(*fields))
    return menu


def sparse_menu() -> list[ModuleRecipe]:
    """Half to nine tenths of the weights go; the rest is stored in 16 or 8 bits beside a bitmap.

    That is 1.8 to 9 bits a weight.
    """
    return [
        prune(sparsity, values)
        for prune in (Wanda, SparseGPT)
        for values in (ValueKind.BFLOAT16, ValueKind.INT8)
        for sparsity in (0.5, 0.6, 0.7, 0.8, 0.9)
    ]


def dual_binary_menu() -> list[ModuleRecipe]:
    """Two binary planes: 2.25, 2.5 and 3 bits a weight."""
    return [DualBinarize(group_size) for group_size in (32, 64, 128)]


def low_rank_menu() -> list[ModuleRecipe]:
    """Two thin factors with a quarter to three quarters of the weights."""
    return [ActivationAwareLowRank(share) for share in (0.25, 0.5, 0.75)]


FAMILIES: Mapping[str, Callable[[], Sequence[ModuleRecipe]]] = {
    "default": default_menu,
    "sparse": sparse_menu,
    "dual-binary": dual_binary_menu,
    "low-rank": low_rank_menu,
}
"""What a menu may be put together of."""

APART: Mapping[str, str] = {
    "r-sparse": "R-Sparse leaves weights as they are and prompts dense, so that neither the loss predicted "
    "from weights that move nor the proof on whole windows would see what it costs while decoding; apply "
    "it with r_sparse_recipes"
}
"""Recipes that no budget can choose, and why. Nor would one be better for it: SmolLM2-135M loses 14 % of
perplexity when R-Sparse still reads 60 % of the blocks' weights, and as much when codes of 4 bits, a quarter
of what 16 read, take their place (`results/r-sparse.json`, `results/turbomind.json`)."""


def family_names(text: str) -> tuple[str, ...]:
    """The families that `all`, or names between commas, mean, in the order of `FAMILIES`.

    Raises: ValueError for an unknown name, none, or one of `APART`.
    """
    asked = {name.strip() for name in text.split(",")}
    if apart := sorted(asked & APART.keys()):
        raise ValueError(f"{apart[0]!r} is no recipe of a budget: {APART[apart[0]]}")
    known = ", ".join((*FAMILIES, "all"))
    if unknown := sorted(asked - {*FAMILIES, "all"}):
        raise ValueError(f"{unknown[0]!r} is no family of recipes; use {known}, or several between commas")
    return tuple(name for name in FAMILIES if name in asked or "all" in asked)


def menu_of(families: Sequence[str]) -> list[ModuleRecipe]:
    """The recipes of all these families."""
    return [recipe for name in families for recipe in FAMILIES[name]()]


def options_for(slot: Slot, menu: Sequence[ModuleRecipe]) -> list[ModuleRecipe]:
    """The recipes of a menu that can rewrite a weight, plain rounding only where GPTQ cannot.

    The grids of llama.cpp are rounded to plainly as well: that holds a model shipped in one without loss.
    """
    able = [recipe for recipe in menu if why_not(slot, recipe) is None]
    compensated = {recipe.form for recipe in able if isinstance(recipe, GPTQ)} - KINDS.keys()
    return [r for r in able if not (isinstance(r, RoundToNearest) and r.form in compensated)]


def why_not(slot: Slot, recipe: ModuleRecipe) -> str | None:
    """The reason why a recipe cannot rewrite a weight and all that is tied to it; None if it can."""
    for name, module in zip(slot.names, slot.modules, strict=True):
        if reason := recipe.why_not(name, module):
            return reason
    if reason := recipe.why_not_alone(slot.name, slot.module):
        return reason
    return recipe.why_not_tied(slot.name, list(slot.names[1:])) if len(slot.names) > 1 else None
