"""`apply`: rewrite the modules of any model in place by recipes, all of them or, on a bad plan, none."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from shoestring.compression.calibration import Calibration
from shoestring.compression.recipe import ModelRecipe, ModuleRecipe, Needs, Recipe
from shoestring.compression.weight_matrix import holds_matrix, is_linear
from shoestring.notices import notice_fallback

Progress = Callable[[str, int, int], None]
"""Called with a module's name, how many are done, and how many there are."""


@dataclass(frozen=True)
class Slot:
    """A weight matrix of a model: the module that holds it and the modules tied to it.

    `names[0]` is the one that is rewritten: a linear layer where there is one, so that a tied embedding and
    head go by what the head sees.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def module(self) -> nn.Module:
        return self.modules[0]


def slots(model: nn.Module) -> list[Slot]:
    """All linear layers and embeddings of the model in its own order, tied ones together."""
    by_weight: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        if holds_matrix(module):
            by_weight.setdefault(id(module.weight), []).append((name, module))
    found = []
    for members in by_weight.values():
        members.sort(key=lambda member: not is_linear(member[1]))
        found.append(Slot(tuple(n for n, _ in members), tuple(m for _, m in members)))
    return found


def apply(
    model: nn.Module,
    recipe: Recipe | Mapping[str, Recipe | None],
    *,
    calibration: Calibration | None = None,
    ignore: Sequence[str] = ("lm_head",),
    progress: Progress | None = None,
) -> nn.Module:
    """Rewrite linear layers and embeddings in place as the recipe says, and return the model.

    recipe: one for all, or {module name or fnmatch pattern: recipe, or None to leave as is}; an exact name
    goes before patterns, patterns go in their order. ignore: names and patterns to leave; a module named
    exactly in the mapping is never ignored. A tied weight stays tied, and is ignored if one of its names is.

    Works on any `nn.Module` with `nn.Linear`, `nn.Embedding` or transformers' `Conv1D`. Other weights of two
    dimensions or more are named once on stderr.

    Raises: ValueError, before anything is changed, if a module cannot be rewritten (all are named, with the
    reasons), if a mapping's key matches nothing, if a needed calibration is missing, or for a recipe that
    only `apply_in_sequence` can carry out.
    """
    if isinstance(recipe, ModelRecipe):
        if reason := recipe.why_not_model(model):
            raise ValueError(reason)
        recipe.rewrite_model(model)
        return model
    chosen = plan(model, recipe, ignore=ignore)
    _check_calibration(chosen, calibration)
    name_untouched_weights(model)
    for done, (slot, chosen_recipe) in enumerate(chosen):
        if progress is not None:
            progress(slot.name, done, len(chosen))
        rewrite_slot(model, slot, chosen_recipe, calibration)
    if progress is not None and chosen:
        progress(chosen[-1][0].name, len(chosen), len(chosen))
    return model


def plan(
    model: nn.Module,
    recipe: Recipe | Mapping[str, Recipe | None],
    *,
    ignore: Sequence[str] = ("lm_head",),
) -> list[tuple[Slot, ModuleRecipe]]:
    """What `apply` would do: each weight that changes, with its recipe. Raises: ValueError as `apply`."""
    mapping = {"*": recipe} if isinstance(recipe, Recipe) else dict(recipe)
    available = slots(model)
    _check_keys(mapping, available)
    chosen, reasons = [], []
    for slot in available:
        slot_recipe = _recipe_of(slot, mapping, ignore)
        if slot_recipe is None:
            continue
        if not isinstance(slot_recipe, ModuleRecipe):
            kind = type(slot_recipe).__name__
            raise ValueError(f"{kind} concerns the whole model, not {slot.name!r}; apply it by itself.")
        if reason := _why_not(slot, slot_recipe):
            reasons.append(reason)
        chosen.append((slot, slot_recipe))
    if reasons:
        lines = "\n".join(f"  {reason}" for reason in reasons)
        raise ValueError(
            f"{len(reasons)} of {len(chosen)} modules cannot be rewritten, so none was:\n{lines}\n"
            "Give them another recipe, or name them in ignore."
        )
    return chosen


def rewrite_slot(
    model: nn.Module, slot: Slot, recipe: ModuleRecipe, calibration: Calibration | None = None
) -> None:
    """Rewrite one weight and what is tied to it, in place."""
    rewritten = recipe.rewrite(slot.name, slot.module, calibration)
    tied = [recipe.rewrite_tied(module, rewritten) for module in slot.modules[1:]]
    if tied:
        by_name = dict(zip(slot.names, [rewritten, *tied], strict=True))
        owner = next(name for name, _ in model.named_modules() if name in by_name)
        recipe.tie(by_name.pop(owner), list(by_name.values()))
        forget_tied_parameters(model, slot.names)
    for name, old, new in zip(slot.names, slot.modules, [rewritten, *tied], strict=True):
        _replace(model, name, old, new)


def stored_bytes(model: nn.Module) -> int:
    """Bytes of everything `state_dict` holds, tensors that are shared counted once."""
    seen: dict[tuple[int, int, int], int] = {}
    for tensor in model.state_dict().values():
        key = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.nbytes)
        seen[key] = tensor.nbytes
    return sum(seen.values())


def _recipe_of(slot: Slot, mapping: Mapping[str, Recipe | None], ignore: Sequence[str]) -> Recipe | None:
    exact = {name: mapping[name] for name in slot.names if name in mapping}
    if len(set(exact.values())) > 1:
        names = ", ".join(map(repr, exact))
        raise ValueError(f"{names} share one weight but are given different recipes; give them one.")
    if exact:
        return next(iter(exact.values()))
    if any(fnmatchcase(name, pattern) for name in slot.names for pattern in ignore):
        return None
    for pattern, recipe in mapping.items():
        if any(fnmatchcase(name, pattern) for name in slot.names):
            return recipe
    return None


def _why_not(slot: Slot, recipe: ModuleRecipe) -> str | None:
    for name, module in zip(slot.names, slot.modules, strict=True):
        if reason := recipe.why_not(name, module):
            return reason
    if reason := recipe.why_not_alone(slot.name, slot.module):
        return reason
    if len(slot.names) > 1 and (reason := recipe.why_not_tied(slot.name, list(slot.names[1:]))):
        return reason
    return None


def _check_calibration(chosen: list[tuple[Slot, ModuleRecipe]], calibration: Calibration | None) -> None:
    for slot, recipe in chosen:
        if recipe.needs is Needs.BLOCKS:
            raise ValueError(
                f"{type(recipe).__name__} ({slot.name!r}) works on whole blocks; use apply_in_sequence with "
                "batches of tokens."
            )
    lacking = [
        f"{slot.name!r} ({type(recipe).__name__})"
        for slot, recipe in chosen
        if recipe.needs is Needs.CALIBRATION and (calibration is None or slot.name not in calibration)
    ]
    if lacking:
        raise ValueError(
            f"no calibration inputs reached {', '.join(lacking)}; give apply a calibration from `capture`, "
            "with text that reaches every layer."
        )


def _check_keys(mapping: Mapping[str, Recipe | None], available: list[Slot]) -> None:
    names = [name for slot in available for name in slot.names]
    for key in mapping:
        if not any(fnmatchcase(name, key) for name in names) and key != "*":
            near = get_close_matches(key, names, n=1, cutoff=0.0)
            advice = f"; the nearest name is {near[0]!r}" if near else "; the model has none"
            raise ValueError(f"{key!r} matches no linear layer or embedding{advice}.")


def _replace(model: nn.Module, name: str, old: nn.Module, new: nn.Module) -> None:
    new.train(old.training)
    if not name:
        raise ValueError("the model is itself the module to rewrite; wrap it, e.g. in nn.Sequential.")
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, new)


def forget_tied_parameters(model: nn.Module, names: tuple[str, ...]) -> None:
    """transformers ties parameters by name; these are no parameters any more, and tied by construction."""
    for module in model.modules():
        for attribute in ("all_tied_weights_keys", "_tied_weights_keys"):
            keys = getattr(module, attribute, None)
            if isinstance(keys, dict):
                kept = {
                    k: v
                    for k, v in keys.items()
                    if not any(n in (f"{x}.weight",) for n in (k, v) for x in names)
                }
                setattr(module, attribute, kept)


def name_untouched_weights(model: nn.Module) -> None:
    """Say which large weights no recipe can reach: those outside linear layers and embeddings."""
    for name, module in model.named_modules():
        if holds_matrix(module):
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2:
                shape = "×".join(map(str, parameter.shape))
                full = f"{name}.{leaf}" if name else leaf
                notice_fallback(
                    "apply",
                    f"{full!r} ({shape}) of {type(module).__name__} stays as it is: no recipe rewrites it",
                )
