"""Measure what each block of a fitted model really costs, and correct the predictions by it.

Predicted losses are of second order and of one layer at a time; errors of many layers add up to more, and not
by the same factor everywhere. So each block in turn gets its original weights back inside the fitted model:
by how much the divergence falls is what the block costs there, interactions included.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoestring.compression.apply import slots
from shoestring.compression.profile import Option
from shoestring.compression.sensitivity import logits_of
from shoestring.yardstick.language_quality import without_cache

LARGEST_CORRECTION = 4.0
"""A correction beyond this factor, relative to the median one, is noise of a short text."""

TOKENS_AT_ONCE = 512


def block_of(name: str) -> str:
    """The block that a module belongs to: its name up to the first number ("model.layers.3"), else itself."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: index + 1])
    return name


def marginal_losses(
    fitted: nn.Module,
    original: nn.Module,
    windows: Int[Tensor, "windows tokens"],
    *,
    autocast: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """By block: how much the divergence (nats a token) falls when the block gets its original weights back.

    Both models are left as they were.
    """
    modules = {name: m for slot in slots(original) for name, m in zip(slot.names, slot.modules, strict=True)}
    blocks: dict[str, list[str]] = {}
    tied = {name: slot.name for slot in slots(original) for name in slot.names}
    for name in modules:
        blocks.setdefault(block_of(tied[name]), []).append(name)
    wanted = [_log_probabilities(original, window[None], autocast) for window in windows]
    everything = _mean_divergence(fitted, wanted, windows, autocast)
    falls = {}
    for done, (block, names) in enumerate(blocks.items()):
        replaced = {name: fitted.get_submodule(name) for name in names}
        try:
            for name in names:
                _put(fitted, name, modules[name])
            falls[block] = everything - _mean_divergence(fitted, wanted, windows, autocast)
        finally:
            for name, module in replaced.items():
                _put(fitted, name, module)
        if progress is not None:
            progress(done + 1, len(blocks))
    return falls


def corrections(chosen: Mapping[str, Option], measured: Mapping[str, float]) -> dict[str, float]:
    """By slot: the factor between what its block costs by measurement and by prediction.

    Blocks that were predicted to cost nothing, or measured to cost less than nothing, are held to the bounds.
    """
    predicted: dict[str, float] = {}
    for name, option in chosen.items():
        predicted[block_of(name)] = predicted.get(block_of(name), 0.0) + option.loss
    ratios = {block: measured[block] / loss for block, loss in predicted.items() if loss > 0}
    if not ratios:
        return dict.fromkeys(chosen, 1.0)
    middle = max(median(ratios.values()), 1e-6)
    low, high = middle / LARGEST_CORRECTION, middle * LARGEST_CORRECTION
    factor = {block: min(max(ratios.get(block, middle), low), high) for block in predicted}
    return {name: factor[block_of(name)] for name in chosen}


def corrected(
    options: Mapping[str, Sequence[Option]], factors: Mapping[str, float]
) -> dict[str, list[Option]]:
    """Options with their losses multiplied by their slot's factor."""
    return {name: [replace(o, loss=o.loss * factors[name]) for o in own] for name, own in options.items()}


def _log_probabilities(
    model: nn.Module, ids: Int[Tensor, "1 tokens"], autocast: torch.dtype | None
) -> Float[Tensor, "tokens vocabulary"]:
    with torch.no_grad(), torch.autocast(ids.device.type, autocast, enabled=autocast is not None):
        logits = logits_of(model(ids, **without_cache(model)))[0]
    return logits.float().log_softmax(-1).half()  # half the memory; rounds alike for every block


def _mean_divergence(
    model: nn.Module,
    wanted: Sequence[Float[Tensor, "tokens vocabulary"]],
    windows: Int[Tensor, "windows tokens"],
    autocast: torch.dtype | None,
) -> float:
    total = 0.0
    for log_p, window in zip(wanted, windows, strict=True):
        with torch.no_grad(), torch.autocast(window.device.type, autocast, enabled=autocast is not None):
            logits = logits_of(model(window[None], **without_cache(model)))[0]
        for start in range(0, len(logits), TOKENS_AT_ONCE):
            p = log_p[start : start + TOKENS_AT_ONCE].float()
            q = logits[start : start + TOKENS_AT_ONCE].float().log_softmax(-1)
            total += (p.exp() * (p - q)).sum().item()
    return total / windows.numel()


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, module)
