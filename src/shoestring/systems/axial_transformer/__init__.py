"""Axial Transformer: attention along rows and columns, and an exact model of pictures that is drawn by rows.

Attention over N = S^d elements costs O(N^((d+1)/d)); pictures are drawn with most of what a pixel depends on
computed once a row, or never twice.
"""

import torch

from shoestring.notices import record_fallbacks
from shoestring.systems.axial_transformer.claims import CLAIMS
from shoestring.systems.axial_transformer.cost import cost_rows
from shoestring.systems.axial_transformer.density import (
    DensitySettings,
    colour_row,
    density_rows,
    digit_images,
    fashion_images,
)
from shoestring.systems.axial_transformer.gpu import LARGE, gpu_rows
from shoestring.systems.axial_transformer.sampling import sampled_model, sampling_rows
from shoestring.systems.card import Card, Effort
from shoestring.yardstick.comparison import Comparison

card = Card(
    slug="axial-transformer",
    title="Axial Transformer",
    paper="Axial Attention in Multidimensional Transformers (2019)",
    year=2019,
    authors_code="google-research/google-research",
    saves=("compute", "memory", "time"),
    parts=(
        "shoestring.layers.axial.along_axis.AlongAxis",
        "shoestring.layers.axial.axial_attention.AxialAttention",
        "shoestring.layers.axial.axial_attention.AxialBlocks",
        "shoestring.layers.axial.line_attention.AttentionBlock",
        "shoestring.models.axial_image_model.AxialImageModel",
        "shoestring.generation.semi_parallel.sample_images",
        "shoestring.training.weight_average.WeightAverage",
        "shoestring.yardstick.bits_per_dimension",
    ),
    claims=CLAIMS,
)

SECONDS = {Effort.QUICK: 34.0, Effort.FULL: 300.0}
"""Of training for each of three models."""


def measure(effort: Effort, seed: int) -> Comparison:
    """The cost of attention, the time of a drawn pixel, and the density after equal seconds of training."""
    smoke = effort is Effort.SMOKE
    with record_fallbacks() as fallbacks:
        rows = cost_rows((4, 6, 8) if smoke else (16, 32, 64, 96), 3 if smoke else 5, seed)
        if smoke:
            rows += sampling_rows(sampled_model(4, seed), batch=2, naive=2, rounds=3, seed=seed)
            settings = DensitySettings(seconds=0.05, batch=2, judged=4, rounds=3, dim=8)
            task, steps = digit_images(seed), 2
        else:
            rows += sampling_rows(sampled_model(28, seed), batch=16, naive=20, rounds=3, seed=seed)
            settings = DensitySettings(seconds=SECONDS[effort])
            task, steps = fashion_images(14, seed), 60
        density, notes = density_rows(task, settings, seed)
        colour, more = colour_row(steps, seed)
        rows += density + colour
        if torch.cuda.is_available():
            rows += gpu_rows(LARGE, batch=4, drawn=256, device="cuda", seed=seed)
    return Comparison(
        system=card.slug,
        method="attention along rows and columns",
        baseline="attention over all elements",
        work="grids of random features; Fashion-MNIST in 16 grey values",
        rows=tuple(rows),
        effort=effort,
        seed=seed,
        notes=(*notes, *more, *fallbacks),
    )
