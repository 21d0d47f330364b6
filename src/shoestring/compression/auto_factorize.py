"""`auto_fact`: linear layers and convolutions of any model become pairs of thin ones.

Source: Cahyawijaya 2021, "Greenformers: Improving Computation and Memory Efficiency in Transformer Models via
Low-Rank Approximation"; the options are those of the author's package `greenformer`. Where that draws a
random SVD, the default here is the exact one.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from shoestring.compression.apply import forget_tied_parameters
from shoestring.compression.factor_solvers import EnergyRank, Factors, Solver, solver_of
from shoestring.compression.weight_matrix import is_linear, weight_matrix
from shoestring.layers.low_rank.low_rank_conv import (
    Conv,
    LowRankConv,
    conv_break_even_rank,
    rank_of_groups,
    taps_of,
)
from shoestring.layers.low_rank.low_rank_linear import LowRankLinear, break_even_rank
from shoestring.notices import notice_fallback

Rank = int | float | EnergyRank
ConvLimit = Callable[[int, int, int, int], int]
"""Called with inputs, outputs, places of the kernel, and groups."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Site:
    """A layer to factor: the places where it stands, and the layers that share its weight."""

    names: tuple[str, ...]
    module: Any
    tied: tuple["Site", ...] = ()


def auto_fact(
    model: nn.Module,
    rank: Rank,
    solver: str | Solver = "svd",
    num_iter: int = 10,
    submodules: Sequence[str | nn.Module] | None = None,
    deepcopy: bool = False,
    fact_led_unit: bool = False,
    *,
    seed: int = 0,
    conv_limit: ConvLimit = conv_break_even_rank,
) -> nn.Module:
    """Factor every linear layer (GPT-2's `Conv1D` too) and convolution, in place, and return the model.

    rank: an int; a float in (0, 1], the share of the rank from which a layer no longer shrinks, rounded down;
    or `EnergyRank`. A layer whose rank comes out as 0, or where it would not shrink, stays as it is, which is
    said on stderr. solver: "svd" (exact), "balanced" (for fine-tuning), "randomised-svd", "nmf", "snmf",
    "random" (for training from scratch), or a `Solver` such as `ActivationAware(calibration)`.
    num_iter, seed: of the solvers that iterate or draw. submodules: names or modules; only these and what is
    below them. deepcopy: work on a copy and leave the model alone. fact_led_unit: factor the halves of layers
    that are of low rank already. conv_limit: the rank from which a convolution no longer shrinks;
    `kernel_blind_break_even_rank` gives the ranks of the package.

    Biases are copied; layers that share a weight share the factors. Layers tied to an embedding, and those
    whose weight their parent reads itself (the output map of `nn.MultiheadAttention`), stay.

    Raises: ValueError for a rank that is none, an unknown solver, submodules that are not the model's, packed
    or non-matrix weights, negative weights for "nmf", or a model with nothing to factor. Nothing has been
    changed then.
    """
    check_rank(rank)
    chosen = solver_of(solver, num_iter, seed)
    roots = None if submodules is None else [_root_name(model, part) for part in submodules]
    model = copy.deepcopy(model) if deepcopy else model
    sites = _sites(model, roots, fact_led_unit)
    made = [pair for site in sites for pair in _factored_site(site, rank, chosen, conv_limit)]
    for site, new in made:
        for name in site.names:
            if not name:
                return new
            _put(model, name, new)
        forget_tied_parameters(model, site.names)
    _avoid_fused_encoders(model)
    return model


def check_rank(rank: Rank) -> None:
    """Raises: ValueError for what is neither a whole rank, a share in (0, 1], nor an `EnergyRank`."""
    whole = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
    share = isinstance(rank, float) and 0 < rank <= 1
    if not (whole or share or isinstance(rank, EnergyRank)):
        raise ValueError(f"rank={rank} is neither a whole rank (1, 2, …) nor a share in (0, 1].")


def factor_linear(layer: nn.Module, rank: int, solver: Solver | str = "svd", name: str = "") -> LowRankLinear:
    """The layer as two of this rank, whether that saves or not. Raises: ValueError above full rank."""
    weight = weight_matrix(layer)
    limit = min(weight.shape)
    if not 1 <= rank <= limit:
        raise ValueError(f"rank={rank} of {name!r} must be from 1 to {limit}, its full rank.")
    down, up = _solve(weight, rank, solver, name)
    return LowRankLinear.of(down, up, layer.bias)  # type: ignore[arg-type]


def factor_conv(conv: Conv, rank: int, solver: Solver | str = "svd", name: str = "") -> LowRankConv:
    """The convolution as two with `rank` channels between, a multiple of its groups; each group by itself.

    Raises: ValueError for a rank that the groups do not divide, or above full rank.
    """
    groups = conv.groups
    matrices = conv.weight.detach().reshape(groups, conv.out_channels // groups, -1)
    limit = groups * min(matrices.shape[1:])
    if rank % groups or not 1 <= rank <= limit:
        raise ValueError(
            f"rank={rank} of {name!r} must be a multiple of groups={groups} from {groups} to {limit}."
        )
    parts = [_solve(matrix, rank // groups, solver, name) for matrix in matrices]
    return LowRankConv.of(conv, torch.stack([d for d, _ in parts]), torch.stack([u for _, u in parts]))


def _solve(weight: torch.Tensor, rank: int, solver: Solver | str, name: str) -> Factors:
    exact = torch.promote_types(weight.dtype, torch.float32)
    with torch.no_grad():
        down, up = solver_of(solver).factors(weight.to(exact), rank, name)
    return down.to(weight.dtype), up.to(weight.dtype)


def _factored_site(
    site: Site, rank: Rank, solver: Solver, conv_limit: ConvLimit
) -> Iterator[tuple[Site, nn.Module]]:
    name, module = site.names[0], site.module
    chosen, limit = _rank_of(module, rank, conv_limit)
    if chosen < 1 or chosen >= limit:
        notice_fallback(
            "auto_fact",
            f"{name!r} stays whole: rank {chosen} of it is {'nothing' if chosen < 1 else 'no smaller'} "
            f"(use 1 to {limit - 1})" if limit > 1 else f"{name!r} stays whole: no rank makes it smaller",
        )  # fmt: skip
        return
    new: LowRankLinear | LowRankConv
    if isinstance(module, CONVOLUTIONS):
        new = factor_conv(module, chosen, solver, name)
    else:
        new = factor_linear(module, chosen, solver, name)
    yield site, _like(module, new)
    for other in site.tied:
        twin = LowRankLinear.of(new.down.weight.detach(), new.up.weight.detach(), other.module.bias)
        twin.down.weight, twin.up.weight = new.down.weight, new.up.weight
        yield other, _like(other.module, twin)


def _like(old: Any, new: Any) -> nn.Module:
    """Trained and frozen as the old one was."""
    new.train(old.training)
    for factor in (new.down, new.up):
        factor.weight.requires_grad_(old.weight.requires_grad)
    if new.bias is not None:
        new.bias.requires_grad_(old.bias.requires_grad)
    return new


def _rank_of(module: nn.Module, rank: Rank, conv_limit: ConvLimit) -> tuple[int, int]:
    """The rank that a layer is given, and the one from which it no longer shrinks."""
    if isinstance(module, CONVOLUTIONS):
        groups = module.groups
        limit = conv_limit(module.in_channels, module.out_channels, taps_of(module), groups)
        matrices = module.weight.detach().reshape(groups, module.out_channels // groups, -1)
        energy = [rank.of(m) for m in matrices] if isinstance(rank, EnergyRank) else []
        wanted = groups * max(energy) if energy else _count(rank, limit)
        return rank_of_groups(wanted, groups), limit
    rows, cols = weight_matrix(module).shape
    limit = break_even_rank(cols, rows)
    return rank.of(weight_matrix(module)) if isinstance(rank, EnergyRank) else _count(rank, limit), limit


def _count(rank: Rank, limit: int) -> int:
    assert not isinstance(rank, EnergyRank)
    return int(rank * limit) if isinstance(rank, float) else rank


def _sites(model: nn.Module, roots: list[str] | None, inside: bool) -> list[Site]:
    """Every layer to factor, once. Raises: ValueError where one cannot be."""
    names: dict[int, list[str]] = {}
    found: dict[int, nn.Module] = {}
    held = _held_back(model, inside)
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in held or (roots is not None and not _below(name, roots)):
            continue
        if _is_factorable(name, module):
            names.setdefault(id(module), []).append(name)
            found[id(module)] = module
    if not found:
        raise ValueError("auto_fact found no linear layer or convolution to factor here.")
    others = [module for module in model.modules() if id(module) not in found]
    needed = {id(parameter) for module in others for parameter in module.parameters(recurse=False)}
    by_weight: dict[int, list[Site]] = {}
    for key, module in found.items():
        by_weight.setdefault(id(module.weight), []).append(Site(tuple(names[key]), module))
    for weight, (first, *_) in by_weight.items():
        if weight in needed:
            notice_fallback("auto_fact", f"{first.names[0]!r} stays whole: another part shares its weight")
    return [
        Site(first.names, first.module, tuple(rest))
        for weight, (first, *rest) in by_weight.items()
        if weight not in needed
    ]


def _held_back(model: nn.Module, inside: bool) -> set[int]:
    """Layers that are not to be touched: halves of factored ones, and those whose forward is never called."""
    held: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear | LowRankConv) and not inside:
            held |= {id(module.down), id(module.up)}
        if isinstance(module, nn.MultiheadAttention):
            held.add(id(module.out_proj))
            notice_fallback("auto_fact", f"{name!r} stays whole: nn.MultiheadAttention reads its own weights")
    return held


def _is_factorable(name: str, module: nn.Module) -> bool:
    """Raises: ValueError for weights that are packed, or no matrix."""
    if type(module) in CONVOLUTIONS:
        return True
    if isinstance(module, LowRankLinear | LowRankConv) or not (
        isinstance(module, nn.Linear) or is_linear(module) or _maps_features(module)
    ):
        return False
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear) and not is_linear(module):
        raise ValueError(
            f"{name!r} is a {type(module).__name__}, whose weight is packed; factor the model before it is "
            "quantised, or load it dequantised."
        )
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        kind = getattr(weight, "dtype", None)
        raise ValueError(f"{name!r} holds {kind} weights; dequantise them first.")
    if weight.dim() != 2:
        raise ValueError(f"the weight of {name!r} has shape {tuple(weight.shape)}; a matrix was expected.")
    if not is_linear(module):
        notice_fallback(
            "auto_fact", f"{name!r} stays whole: {type(module).__name__} may compute something else"
        )
        return False
    return True


def _maps_features(module: nn.Module) -> bool:
    """Whether a module of another make looks like a linear map, and has no plain one inside."""
    plain = any(isinstance(part, nn.Linear) for part in module.modules())
    return hasattr(module, "in_features") and hasattr(module, "out_features") and not plain


def _root_name(model: nn.Module, part: str | nn.Module) -> str:
    for name, module in model.named_modules(remove_duplicate=False):
        if name == part or module is part:
            return name
    what = repr(part) if isinstance(part, str) else f"a {type(part).__name__} among submodules"
    raise ValueError(f"{what} is no part of the model; give modules of it, or their names.")


def _below(name: str, roots: list[str]) -> bool:
    return any(not root or name == root or name.startswith(f"{root}.") for root in roots)


def _put(model: nn.Module, name: str, new: nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    parent = model.get_submodule(path)
    setattr(parent, leaf, new)


def _avoid_fused_encoders(model: nn.Module) -> None:
    """Inference of torch's own encoders is one fused call that would build the full matrices again."""
    for module in model.modules():
        if not isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer):
            continue
        if any(isinstance(part, LowRankLinear) for part in module.modules()):
            module.use_nested_tensor = False
            module.activation_relu_or_gelu = 0
