"""AWQ: channels that activations make important are scaled up before they are rounded, and down in the input.

s = mᵅ / sqrt(max mᵅ · min mᵅ) for m = E|x| of each input channel; α is the one of a grid whose rounded layers
change the output least. s goes into the weights, 1/s into the norm or linear layer before them.

Source: Lin et al. 2024, "AWQ: Activation-aware Weight Quantization", section 3.2, eq. 4 and 5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoestring.compression.calibration import Calibration
from shoestring.compression.group_quantize import PackedRecipe, packed_module
from shoestring.compression.recipe import Needs
from shoestring.compression.scale_folding import FoldPlace, fold_places, fold_scales
from shoestring.compression.weight_matrix import is_embedding, weight_matrix
from shoestring.layers.packed_linear import PackedWeight
from shoestring.numbers.affine_fit import fit_min_max
from shoestring.numbers.grouped_affine import GroupedAffine, ZeroPoint

LEAST_MAGNITUDE = 1e-4
"""Of a channel: one that never spoke must not get an endless scale."""


@dataclass(frozen=True)
class AWQ(PackedRecipe):
    """Round to nearest, no weight clipped, after a search of scales for the input channels, block by block.

    steps: values of α that are tried, 0, 1/steps, …; 0 is plain rounding. Other fields: as `PackedRecipe`.
    Given to `apply_in_sequence`, which scales what its blocks (those of the Llama family) let it scale.

    Raises: ValueError for a format that does not exist, or steps below 1.
    """

    needs: ClassVar[Needs] = Needs.BLOCKS
    group_size: int = 128
    zero_point: ZeroPoint = ZeroPoint.INTEGER
    steps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} tries no scale; use 1 (plain rounding) or more.")

    def why_not_alone(self, name: str, module: nn.Module) -> str | None:
        if is_embedding(module):
            return f"{name!r} is an embedding: nothing before it takes its scales; use RoundToNearest."
        return None

    def rewrite(self, name: str, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        if reason := self.why_not(name, module) or self.why_not_alone(name, module):
            raise ValueError(reason)
        weight = weight_matrix(module)
        grid = fit_min_max(self.form, weight, name)
        packed = PackedWeight.of(self.form, self.form.encode(weight, grid), grid, weight.dtype)
        return packed_module(module, packed)


@dataclass
class _Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class _Seen:
    """Of one place: E|x| of the readers' input, how the judge was called, and what it put out."""

    magnitude: Float[Tensor, " inputs"]
    calls: list[_Call]
    outputs: list[Tensor]


def why_no_scales(block: nn.Module, names: Sequence[str]) -> list[str]:
    """Those of the named layers of a block whose scales nothing before them can take."""
    able = {reader for place in fold_places(block) for reader in place.readers}
    return [name for name in names if name not in able]


@torch.no_grad()
def scale_block(block: nn.Module, recipes: Mapping[str, AWQ], calls: Sequence[tuple[Any, ...]]) -> None:
    """Search the scales of a block's layers and fold them; the block computes what it did before.

    recipes: of the layers that will be rounded, by their names within the block. calls: (args, kwargs) of the
    block, one for each batch. Layers that read the same input without being rounded are scaled along.
    """
    places = [place for place in fold_places(block) if any(name in recipes for name in place.readers)]
    seen = _observe(block, places, calls)
    for place in places:
        own = {name: recipes[name] for name in place.readers if name in recipes}
        fold_scales(block, place, _best_scales(block, place, own, seen.pop(place)))


def channel_scales(magnitude: Float[Tensor, " inputs"], alpha: float) -> Float[Tensor, " inputs"]:
    """s of the equation above."""
    powers = magnitude.float().clamp(min=LEAST_MAGNITUDE).pow(alpha)
    return powers / (powers.max() * powers.min()).sqrt()


def scaled_rounding(
    form: GroupedAffine, weight: Float[Tensor, "rows cols"], scales: Float[Tensor, " cols"]
) -> Float[Tensor, "rows cols"]:
    """What W becomes: W·s on the grid of the format, divided by s."""
    scaled = weight.float() * scales
    grid = fit_min_max(form, scaled)
    return form.nearest(scaled, grid) / scales


def naive_best_alpha(
    form: GroupedAffine, weight: Float[Tensor, "rows cols"], x: Float[Tensor, "tokens cols"], steps: int
) -> float:
    """The α of least squared change of x Wᵀ, for one layer by itself: the definition of the search."""
    alphas = [step / steps for step in range(steps)]
    magnitude = x.abs().mean(0)

    def change(alpha: float) -> float:
        rounded = scaled_rounding(form, weight, channel_scales(magnitude, alpha))
        return (x @ (rounded - weight).T).double().square().sum().item()

    return min(alphas, key=change)


def _best_scales(block: nn.Module, place: FoldPlace, recipes: Mapping[str, AWQ], seen: _Seen) -> Tensor:
    magnitude = place.tied(seen.magnitude)
    judge = block.get_submodule(place.judge)
    layers: dict[str, Any] = {name: block.get_submodule(name) for name in recipes}
    originals = {name: layer.weight for name, layer in layers.items()}
    steps = max(recipe.steps for recipe in recipes.values())
    best, least = torch.ones_like(magnitude), float("inf")
    try:
        for step in range(steps):
            scales = channel_scales(magnitude, step / steps)
            for name, layer in layers.items():
                rounded = scaled_rounding(recipes[name].form, originals[name], scales)
                layer.weight = nn.Parameter(rounded.to(originals[name].dtype), requires_grad=False)
            change = _change(judge, seen)
            if change < least:
                best, least = scales, change
    finally:
        for name, layer in layers.items():
            layer.weight = originals[name]
    return best


def _change(judge: nn.Module, seen: _Seen) -> float:
    total = 0.0
    for call, exact in zip(seen.calls, seen.outputs, strict=True):
        total += (_first(judge(*call.args, **call.kwargs)) - exact).float().square().sum().item()
    return total


def _observe(
    block: nn.Module, places: Sequence[FoldPlace], calls: Sequence[tuple[Any, ...]]
) -> dict[FoldPlace, _Seen]:
    """One pass through the block that keeps what the search of each place needs."""
    seen = {place: _Seen(torch.zeros(0), [], []) for place in places}
    counts = dict.fromkeys(places, 0)

    def read(place: FoldPlace, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).float()
        total = rows.abs().sum(0)
        seen[place].magnitude = total if counts[place] == 0 else seen[place].magnitude + total
        counts[place] += len(rows)

    def judged(place: FoldPlace, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        seen[place].calls.append(_Call(args, kwargs))
        seen[place].outputs.append(_first(out))

    handles = []
    for place in places:
        first, judge = block.get_submodule(place.readers[0]), block.get_submodule(place.judge)
        handles.append(first.register_forward_pre_hook(lambda _, a, p=place: read(p, a[0])))
        handles.append(
            judge.register_forward_hook(lambda _, a, k, out, p=place: judged(p, a, k, out), with_kwargs=True)
        )
    training = block.training
    block.eval()
    try:
        for args, kwargs in calls:
            block(*args, **kwargs)
    finally:
        block.train(training)
        for handle in handles:
            handle.remove()
    for place in places:
        seen[place].magnitude /= max(counts[place], 1)
    return seen


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out
