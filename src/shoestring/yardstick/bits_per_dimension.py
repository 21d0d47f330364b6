"""Bits per dimension: how many bits a density model needs for one value of a picture, on average.

Source: van den Oord et al. 2016, "Pixel Recurrent Neural Networks", section 5 (discrete models).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F

from shoestring.yardstick.paired_difference import CONFIDENCE


def bits_per_dimension(
    logits: Float[Tensor, "batch *sizes n_values"], values: Integer[Tensor, "batch *sizes"]
) -> Float[Tensor, " batch"]:
    """-log2 p(values) of each sample over how many values it has.

    Raises: ValueError for samples without values, or a value that has no logit.
    """
    if values[:1].numel() == 0 or len(values) == 0:
        raise ValueError(f"values have shape {tuple(values.shape)}: there is nothing to count bits of")
    least, largest = int(values.min()), int(values.max())
    if least < 0 or largest >= logits.shape[-1]:
        raise ValueError(
            f"values run from {least} to {largest}; "
            f"logits of {logits.shape[-1]} values allow 0 … {logits.shape[-1] - 1}"
        )
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    nats = F.cross_entropy(exact.flatten(0, -2), values.flatten().long(), reduction="none")
    return nats.view(len(values), -1).mean(1) / math.log(2)


@dataclass(frozen=True)
class Bits:
    """Mean bits per dimension over samples, with its 95 % interval."""

    mean: float
    spread: tuple[float, float]


def mean_bits(bits: Float[Tensor, " batch"]) -> Bits:
    """The mean of what `bits_per_dimension` gave, or of its difference between two models.

    Raises: ValueError for fewer than two samples, which have no interval.
    """
    if len(bits) < 2:
        raise ValueError(f"an interval needs two samples or more, not {len(bits)}")
    mean = bits.double().mean().item()
    margin = CONFIDENCE * bits.double().std().item() / math.sqrt(len(bits))
    return Bits(mean, (mean - margin, mean + margin))
