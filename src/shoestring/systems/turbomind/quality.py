"""What four bits cost a language model: codes kept as shipped, rounded anew, rounded after AWQ's search."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from shoestring.compression import AWQ, RoundToNearest, apply, apply_in_sequence
from shoestring.models.decoder import Decoder
from shoestring.numbers.grouped_affine import ZeroPoint
from shoestring.systems.turbomind.claims import BETTER, COST, GROUPS, IMPORT
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.paired_difference import CONFIDENCE

Losses = Float[Tensor, " windows"]


@dataclass(frozen=True)
class QualityTask:
    """model: in float32. imported: the same with the codes of its file. steps: of AWQ's search."""

    model: Decoder
    imported: Decoder
    calibration: Int[Tensor, "windows tokens"]
    held_out: Int[Tensor, "windows2 tokens2"]
    steps: int


def quality_rows(task: QualityTask) -> list[Row]:
    """All rows on perplexity, paired by window of held-out text."""
    exact = window_losses(task.model, task.held_out)
    rows = [IMPORT.row(**_ratio(window_losses(task.imported, task.held_out), exact))]
    for group in GROUPS:
        awq = window_losses(_scaled(task, group, task.steps), task.held_out)
        plain = {name: window_losses(model, task.held_out) for name, model in _rounded(task, group)}
        best = min(plain, key=lambda name: plain[name].mean().item())
        rows.append(COST[group].row(**_ratio(awq, exact)))
        rows.append(BETTER[group].row(**_ratio(awq, plain[best]), against=f"rounding, {best}"))
        for name, losses in plain.items():
            rows.append(
                Row(
                    metric=f"perplexity, rounding by {name}, groups of {group}", kind="quality", unit="",
                    better="lower", **_ratio(losses, exact),
                )
            )  # fmt: skip
    return rows


@torch.inference_mode()
def window_losses(model: Decoder, windows: Int[Tensor, "windows tokens"]) -> Losses:
    """Mean cross-entropy of each window, nats a token."""
    losses = []
    for ids in windows:
        logits: Any = model(ids[None]).logits
        losses.append(F.cross_entropy(logits[0, :-1].float(), ids[1:]).double())
    return torch.stack(losses)


def _scaled(task: QualityTask, group: int, steps: int) -> Decoder:
    """The layers of the blocks by AWQ; a search of one step is rounding by extremes."""
    model = copy.deepcopy(task.model)
    apply_in_sequence(model, {"*_proj": AWQ(4, group, steps=steps)}, task.calibration.split(1))
    return model


def _rounded(task: QualityTask, group: int) -> Iterator[tuple[str, Decoder]]:
    """Plain rounding with each fit of the grid."""
    yield "extremes", _scaled(task, group, 1)
    model = copy.deepcopy(task.model)
    apply(model, {"*_proj": RoundToNearest(4, group, ZeroPoint.INTEGER)})
    yield "least squares", model


def _ratio(ours: Losses, theirs: Losses) -> dict[str, Any]:
    """Perplexities, their ratio, and its 95 % interval, paired by window."""
    change = ours - theirs
    mean = change.mean().item()
    margin = CONFIDENCE * (change.std().item() / math.sqrt(len(change)) if len(change) > 1 else 0.0)
    return {
        "baseline": math.exp(theirs.mean().item()),
        "method": math.exp(ours.mean().item()),
        "ratio": math.exp(mean),
        "spread": (math.exp(mean - margin), math.exp(mean + margin)),
    }
