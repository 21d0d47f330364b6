"""Rewrite a model block by block, each calibrated on what the rewritten blocks before it put out.

Within a block all layers are calibrated together. Source: Frantar et al. 2023, "GPTQ", section 4 (setup).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.compression.apply import Progress, Slot, name_untouched_weights, plan, rewrite_slot
from shoestring.compression.awq import AWQ, scale_block, why_no_scales
from shoestring.compression.calibration import Calibration, InputRecorder, capture, run
from shoestring.compression.recipe import ModuleRecipe, Needs, Recipe
from shoestring.compression.weight_matrix import is_embedding

Chosen = list[tuple[Slot, ModuleRecipe]]


@dataclass
class _Call:
    """What one block was called with beside the hidden states: masks, positions."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def apply_in_sequence(
    model: nn.Module,
    recipe: Recipe | Mapping[str, Recipe | None],
    batches: Iterable[Tensor],
    *,
    ignore: Sequence[str] = ("lm_head",),
    progress: Progress | None = None,
) -> nn.Module:
    """`apply`, block by block, with calibration on already rewritten predecessors; returns the model.

    batches: what the model takes as its one argument, e.g. token ids. Embeddings (and a head tied to one) go
    first, calibrated on the original model; layers outside the blocks go last. Held in memory: the hidden
    states of all batches, the statistics of a block.

    Raises: ValueError as `apply` does, if the model is not a chain of blocks, each fed by the one before, or
    for a layer that is to be scaled (`AWQ`) with nothing before it to take the scales.
    """
    batches = list(batches)
    chosen = plan(model, recipe, ignore=ignore)
    blocks = _blocks(model, chosen)
    first, inner, last = _stages(model, blocks, chosen)
    _check_scales(blocks, inner, [*first, *last])
    steps = _Steps(model, len(chosen), progress)
    calls, hidden = _record(model, blocks, batches[:1])  # a model that is no chain is refused untouched
    name_untouched_weights(model)
    steps.rewrite(first, _capture(model, batches, first))
    calls, hidden = _record(model, blocks, batches)
    for block, own, block_calls in zip(blocks, inner, calls, strict=True):
        if scaled := _scaled(block, own):
            full = [((x, *call.args), call.kwargs) for x, call in zip(hidden, block_calls, strict=True)]
            scale_block(block, scaled, full)
        modules = {slot.name: slot.module for slot, own_recipe in own if _is_calibrated(own_recipe)}
        with InputRecorder(modules) as recorder:
            if modules:
                _run_block(block, hidden, block_calls)
        steps.rewrite(own, recorder.calibration)
        hidden = _run_block(block, hidden, block_calls)
    steps.rewrite(last, _capture(model, batches, last))
    return model


@dataclass
class _Steps:
    model: nn.Module
    total: int
    progress: Progress | None
    done: int = 0

    def rewrite(self, chosen: Chosen, calibration: Calibration) -> None:
        for slot, recipe in chosen:
            rewrite_slot(self.model, slot, recipe, calibration)
            self.done += 1
            if self.progress is not None:
                self.progress(slot.name, self.done, self.total)


def _blocks(model: nn.Module, chosen: Chosen) -> list[nn.Module]:
    """The `nn.ModuleList` that holds most of the layers to rewrite."""
    names = [slot.name for slot, _ in chosen]
    best: tuple[int, nn.ModuleList | None] = (0, None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            held = sum(n.startswith(f"{name}.") for n in names)
            if held > best[0]:
                best = (held, module)
    if best[1] is None:
        raise ValueError(
            "the model has no list of blocks (nn.ModuleList) to go through; use apply and capture."
        )
    return list(best[1])


def _stages(model: nn.Module, blocks: list[nn.Module], chosen: Chosen) -> tuple[Chosen, list[Chosen], Chosen]:
    """The choices before, in each of, and after the blocks."""
    members = [set(block.modules()) for block in blocks]
    inner: list[Chosen] = [[] for _ in blocks]
    first, last = [], []
    for slot, recipe in chosen:
        homes = [i for i, member in enumerate(members) if slot.module in member]
        if homes:
            inner[homes[0]].append((slot, recipe))
        elif any(is_embedding(module) for module in slot.modules):
            first.append((slot, recipe))
        else:
            last.append((slot, recipe))
    return first, inner, last


def _scaled(block: nn.Module, own: Chosen) -> dict[str, AWQ]:
    """The layers of a block to be scaled before they are rounded, by their names within it."""
    names = {module: name for name, module in block.named_modules()}
    return {names[slot.module]: recipe for slot, recipe in own if isinstance(recipe, AWQ)}


def _check_scales(blocks: list[nn.Module], inner: list[Chosen], outer: Chosen) -> None:
    lost = [slot.name for slot, recipe in outer if isinstance(recipe, AWQ)]
    for block, own in zip(blocks, inner, strict=True):
        without = why_no_scales(block, list(_scaled(block, own)))
        lost += [slot.name for slot, _ in own if any(slot.module is block.get_submodule(n) for n in without)]
    if lost:
        raise ValueError(
            f"nothing before {', '.join(map(repr, lost[:4]))} ({len(lost)} layers) can take the scales of "
            "AWQ; give them another recipe, such as RoundToNearest or GPTQ, or name them in ignore."
        )


def _is_calibrated(recipe: ModuleRecipe) -> bool:
    return recipe.needs is Needs.CALIBRATION


def _capture(model: nn.Module, batches: list[Tensor], chosen: Chosen) -> Calibration:
    names = [slot.name for slot, recipe in chosen if _is_calibrated(recipe)]
    return capture(model, batches, names=names) if names else Calibration()


def _record(
    model: nn.Module, blocks: list[nn.Module], batches: list[Tensor]
) -> tuple[list[list[_Call]], list[Tensor]]:
    """Per block and batch, arguments beside the hidden states; per batch, the input of the first block."""
    calls: list[list[_Call]] = [[] for _ in blocks]
    hidden: list[Tensor] = []
    passed: list[Tensor] = []

    def before(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, args = (args[0], args[1:]) if args else (kwargs["hidden_states"], ())
        if len(calls[index]) != len(hidden) - (index > 0):
            raise ValueError("the model calls a block more than once; use apply and capture.")
        if index == 0:
            hidden.append(x)
        elif not passed or x.shape != passed[-1].shape or not torch.equal(x, passed[-1]):
            raise ValueError(
                f"block {index} is not fed by what block {index - 1} puts out; use apply and capture."
            )
        calls[index].append(_Call(args, {k: v for k, v in kwargs.items() if k != "hidden_states"}))

    def after(out: Any) -> None:
        passed[:] = [_states(out)]

    handles = []
    for i, block in enumerate(blocks):
        handles.append(
            block.register_forward_pre_hook(lambda _, a, k, i=i: before(i, a, k), with_kwargs=True)
        )
        handles.append(block.register_forward_hook(lambda _, a, out: after(out)))
    try:
        run(model, batches)
    finally:
        for handle in handles:
            handle.remove()
    if any(len(own) != len(hidden) for own in calls):
        raise ValueError("the model does not call every block once; use apply and capture.")
    return calls, hidden


def _run_block(block: nn.Module, hidden: list[Tensor], calls: list[_Call]) -> list[Tensor]:
    training = block.training
    block.eval()
    with torch.no_grad():
        out = [_states(block(x, *call.args, **call.kwargs)) for x, call in zip(hidden, calls, strict=True)]
    block.train(training)
    return out


def _states(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out
