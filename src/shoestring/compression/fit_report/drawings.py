"""Where the cells of the layer map and the points of the curve lie. Pure geometry; the template draws."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CELL = 22.0
LABEL_WIDTH = 128.0


@dataclass(frozen=True)
class Cell:
    """One weight matrix on the map. heat: 0 for the fewest bits, 1 for the most."""

    x: float
    y: float
    bits: str
    heat: float
    title: str


@dataclass(frozen=True)
class LayerMap:
    """Blocks from left to right, kinds of weights from top to bottom; `others` stand outside the blocks."""

    width: float
    height: float
    cells: tuple[Cell, ...]
    kinds: tuple[tuple[float, str], ...]
    blocks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Curve:
    """Divergence (upwards, logarithmic) over bytes (to the right)."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    path: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    points: tuple[tuple[float, float, str], ...]
    budget: float | None


@dataclass(frozen=True)
class RecipeRow:
    """All the weights that were given one recipe."""

    name: str
    count: int
    bytes: int
    bits_per_weight: float


def recipe_rows(layers: Sequence[Mapping[str, Any]]) -> tuple[RecipeRow, ...]:
    """What was chosen, added up by recipe, the largest part first."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for layer in layers:
        groups.setdefault(recipe_name(layer["recipe"]), []).append(layer)
    rows = []
    for name, own in groups.items():
        nbytes = sum(layer["bytes"] for layer in own)
        weights = sum(layer["rows"] * layer["cols"] for layer in own)
        rows.append(RecipeRow(name, len(own), nbytes, 8 * nbytes / weights))
    return tuple(sorted(rows, key=lambda row: -row.bytes))


def recipe_name(recipe: Mapping[str, Any]) -> str:
    """A recipe to read: what its fields say, in the words of those that have bits."""
    if {"bits", "group_size", "zero_point"} <= recipe.keys():
        form = f"{recipe['bits']} bits, groups of {recipe['group_size']}, {recipe['zero_point']} zero"
    else:
        form = ", ".join(f"{name} {value}" for name, value in recipe.items() if name != "recipe")
    return f"{recipe['recipe']}, {form}"


def layer_map(layers: Sequence[Mapping[str, Any]]) -> LayerMap:
    """The map of what was chosen; every weight is one cell with its whole bits a weight."""
    placed = [(*_place(layer["name"]), layer) for layer in layers]
    kinds = list(dict.fromkeys(kind for _, kind, _ in placed))
    blocks = sorted({block for block, _, _ in placed if block is not None})
    column = {block: index for index, block in enumerate(blocks)}
    bits = [layer["bits_per_weight"] for layer in layers]
    low, high = min(bits, default=0), max(bits, default=1)
    cells = []
    for block, kind, layer in placed:
        size, recipe = layer["bits_per_weight"], layer["recipe"]
        details = ", ".join(f"{k} {v}" for k, v in recipe.items() if k != "recipe")
        cells.append(
            Cell(
                x=LABEL_WIDTH + CELL * (0 if block is None else column[block]),
                y=CELL * kinds.index(kind),
                bits=str(recipe.get("bits", round(size))),
                heat=(size - low) / (high - low) if high > low else 0.5,
                title=f"{layer['name']}: {recipe['recipe']} ({details}), {size:.2f} bits a weight",
            )
        )
    return LayerMap(
        width=LABEL_WIDTH + CELL * max(1, len(blocks)) + 4,
        height=CELL * (len(kinds) + 1),
        cells=tuple(cells),
        kinds=tuple((CELL * (i + 0.68), kind) for i, kind in enumerate(kinds)),
        blocks=tuple(
            (LABEL_WIDTH + CELL * (i + 0.45), str(block)) for i, block in enumerate(blocks) if i % 5 == 0
        ),
    )


def curve(
    predicted: Sequence[Mapping[str, int | float]],
    factor: float,
    measured: Sequence[tuple[int, float, str]],
    budget_bytes: int | None,
    width: float = 640.0,
    height: float = 300.0,
) -> Curve:
    """Predicted divergence over bytes, times `factor` (measured / predicted at the budget), and what was
    measured: (bytes, divergence, label). The budget, if there is one, is marked where it lies in between."""
    line = [(p["bytes"] / 2**20, p["predicted"] * factor) for p in predicted if p["predicted"] > 0]
    points = [(b / 2**20, loss, label) for b, loss, label in measured if loss > 0]
    sizes = [x for x, *_ in line + points]
    losses = [y for _, y, *_ in line + points]
    left, right, top, bottom = 56.0, width - 16.0, 14.0, height - 40.0
    x_low, x_high = min(sizes), max(sizes) * 1.02
    decades = range(math.floor(math.log10(min(losses))), math.ceil(math.log10(max(losses))) + 1)
    y_low, y_high = decades[0], max(decades[-1], decades[0] + 1)

    def x(mebibytes: float) -> float:
        return left + (right - left) * (mebibytes - x_low) / max(x_high - x_low, 1e-9)

    def y(loss: float) -> float:
        return bottom - (bottom - top) * (math.log10(loss) - y_low) / (y_high - y_low)

    step = _round_step((x_high - x_low) / 6)
    first = math.ceil(x_low / step)
    path = "M" + " L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in line) if line else ""
    return Curve(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        path=path,
        x_ticks=tuple((x(step * n), f"{step * n:g}") for n in range(first, math.floor(x_high / step) + 1)),
        y_ticks=tuple((y(10.0**d), f"{10.0**d:g}") for d in range(y_low, y_high + 1)),
        points=tuple((x(a), y(b), label) for a, b, label in points),
        budget=None
        if budget_bytes is None or not x_low <= budget_bytes / 2**20 <= x_high
        else x(budget_bytes / 2**20),
    )


def _place(name: str) -> tuple[int | None, str]:
    """The number of the block that a weight stands in, and its name there."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return int(part), ".".join(parts[index + 1 :])
    return None, name


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(step, 1e-9)))
    return next(power * n for n in (1, 2, 5, 10) if power * n >= step)
