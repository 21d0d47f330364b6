"""Two means over the same samples, and how far their difference could lie from what was seen."""

import math
from typing import TypedDict

from jaxtyping import Bool, Float
from torch import Tensor

CONFIDENCE = 1.959963984540054
"""Half the width of a 95 % interval, in standard errors."""


class PairedMeans(TypedDict):
    """The fields of a `Row` that it fills."""

    baseline: float
    method: float
    spread: tuple[float, float]


def paired_difference(
    method: Float[Tensor, " samples"] | Bool[Tensor, " samples"],
    baseline: Float[Tensor, " as_many"] | Bool[Tensor, " as_many"],
    *,
    scale: float | int = 1,
) -> PairedMeans:
    """The two means and the 95 % interval of method − baseline, all times `scale` (100 for percent).

    The interval is that of the normal approximation of the mean of the differences, sample by sample.
    Raises: ValueError for samples of different numbers, or fewer than two.
    """
    if method.shape != baseline.shape or len(method) < 2:
        raise ValueError(
            f"{len(method)} samples of the method and {len(baseline)} of the baseline; give as many of each, "
            "two or more"
        )
    ours, theirs = scale * method.double(), scale * baseline.double()
    difference = ours - theirs
    mean, margin = difference.mean().item(), CONFIDENCE * difference.std().item() / math.sqrt(len(difference))
    return PairedMeans(
        baseline=theirs.mean().item(), method=ours.mean().item(), spread=(mean - margin, mean + margin)
    )
