"""Is the sensitivity worth anything? The same budget divided by it, by chance, and by its opposite.

Half of the bytes between a narrow and a wide format are given out to whole weights in the order of a score.
The score of the profile must leave less divergence than a random order and than its own inverse.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from shoestring.compression.apply import apply
from shoestring.compression.profile import Option, Profile
from shoestring.files import write_text
from shoestring.yardstick.language_quality import divergence


@dataclass(frozen=True)
class RankingControls:
    """Measured divergence (nats a token) at equal bytes, by the order in which the bytes were given."""

    by_sensitivity: float
    at_random: float
    inverted: float
    narrow: str
    wide: str

    @property
    def holds(self) -> bool:
        """Whether the sensitivity beats both controls."""
        return self.by_sensitivity < min(self.at_random, self.inverted)


def ranking_controls(
    original: nn.Module,
    known: Profile,
    windows: Int[Tensor, "windows tokens"],
    *,
    narrow: Callable[[Option], bool],
    wide: Callable[[Option], bool],
    seed: int,
    autocast: torch.dtype | None = None,
) -> RankingControls:
    """Measure the three orders on `windows`; kept with the profile, so that it is done once.

    narrow, wide: pick the two formats among a weight's options. Weights that lack one of them stay as they
    are in all three models. Raises: ValueError if no weight has both.
    """
    kept = None if known.folder is None else known.folder / "controls.json"
    if kept is not None and kept.exists():
        return RankingControls(**json.loads(kept.read_text(encoding="utf-8")))
    pairs = {
        name: (low, high)
        for name, own in known.options.items()
        if (low := next(filter(narrow, own), None)) and (high := next(filter(wide, own), None))
    }
    if not pairs:
        raise ValueError("no weight has both formats; pick two of the menu.")
    models = [_applied(original, known, {n: pair[i] for n, pair in pairs.items()}) for i in (0, 1)]
    scores = {n: (low.loss - high.loss) / (high.nbytes - low.nbytes) for n, (low, high) in pairs.items()}
    ranked = sorted(pairs, key=lambda name: -scores[name])
    shuffled = torch.randperm(len(ranked), generator=torch.Generator().manual_seed(seed)).tolist()
    orders = (ranked, [ranked[i] for i in shuffled], ranked[::-1])
    measured = []
    for order in orders:
        chosen = _first_half(order, pairs)
        mixed = _mixed(models[0], models[1], chosen)
        measured.append(divergence(mixed, original, windows, autocast=autocast).kld)
    low, high = next(iter(pairs.values()))
    ours, at_random, inverted = measured
    result = RankingControls(ours, at_random, inverted, narrow=str(low.recipe), wide=str(high.recipe))
    if kept is not None:
        write_text(kept, json.dumps(asdict(result)))
    return result


def _applied(original: nn.Module, known: Profile, options: dict[str, Option]) -> nn.Module:
    model = copy.deepcopy(original)
    recipes = {name: option.recipe for name, option in options.items()}
    return apply(model, recipes, calibration=known.calibration, ignore=())


def _first_half(order: Sequence[str], pairs: dict[str, tuple[Option, Option]]) -> set[str]:
    """The first weights of the order that together take at most half of the extra bytes."""
    room = sum(high.nbytes - low.nbytes for low, high in pairs.values()) // 2
    chosen = set()
    for name in order:
        low, high = pairs[name]
        if high.nbytes - low.nbytes <= room:
            chosen.add(name)
            room -= high.nbytes - low.nbytes
    return chosen


def _mixed(narrow: nn.Module, wide: nn.Module, chosen: set[str]) -> nn.Module:
    """A copy of `narrow` with the chosen weights of `wide`."""
    mixed = copy.deepcopy(narrow)
    for slot_name in chosen:
        for name in _tied_names(wide, slot_name):
            path, _, leaf = name.rpartition(".")
            setattr(mixed.get_submodule(path), leaf, wide.get_submodule(name))
    return mixed


def _tied_names(model: nn.Module, slot_name: str) -> list[str]:
    """The modules of a rewritten model that use the same stored weight as `slot_name`."""
    packed = getattr(model.get_submodule(slot_name), "packed", None)
    if packed is None:
        return [slot_name]
    return [name for name, module in model.named_modules() if getattr(module, "packed", None) is packed]
