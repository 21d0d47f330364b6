"""The time of a pixel that is drawn naively, semi-parallel, and with everything finished kept."""

from collections.abc import Callable
from itertools import islice

import torch

from shoestring.generation.semi_parallel import (
    Pixels,
    gumbel_noise,
    naive_pixels,
    semi_parallel_pixels,
    stepped_pixels,
)
from shoestring.models.axial_image_config import AxialImageConfig
from shoestring.models.axial_image_model import AxialImageModel
from shoestring.systems.axial_transformer.claims import SEMI_PARALLEL, STEPPED
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.timing import time_interleaved


def sampling_rows(model: AxialImageModel, batch: int, naive: int, rounds: int, seed: int) -> list[Row]:
    """Rows of time per pixel, the naive way on `naive` of the pixels, the others on all of them."""
    height, width = model.cfg.height, model.cfg.width
    noise = gumbel_noise(model.cfg, batch, torch.Generator().manual_seed(seed))
    pixels = height * width
    # Several rows, so that what is done once a row is in the time of a row's pixels.
    counts = {"naive": naive, "semi-parallel": pixels, "stepped": pixels}
    ways: dict[str, Callable[..., Pixels]] = {
        "naive": naive_pixels, "semi-parallel": semi_parallel_pixels, "stepped": stepped_pixels,
    }  # fmt: skip

    def drawing(name: str) -> Callable[[], None]:
        def draw() -> None:
            for _ in islice(ways[name](model, noise), counts[name]):
                pass

        return draw

    timed = time_interleaved(
        {name: drawing(name) for name in ways}, rounds=rounds, warmup=1, min_sample_seconds=0
    )

    def per_pixel(method: str, against: str) -> dict[str, object]:
        found = timed.figures(method, against)
        scale = counts[against] / counts[method]
        low, high = found["spread"]
        return {
            "baseline": found["baseline"] / counts[against],
            "method": found["method"] / counts[method],
            "ratio": found["ratio"] * scale,
            "spread": (low * scale, high * scale),
            "against": against,
        }

    return [
        SEMI_PARALLEL.row(**per_pixel("semi-parallel", "naive")),  # type: ignore[arg-type]
        STEPPED.row(**per_pixel("stepped", "semi-parallel")),  # type: ignore[arg-type]
        Row(metric="time of a pixel, stepped, against naive", kind="time", unit="s", better="lower",
            **per_pixel("stepped", "naive")),  # type: ignore[arg-type]
    ]  # fmt: skip


def sampled_model(side: int, seed: int) -> AxialImageModel:
    """A fresh model of square pictures: what it draws does not change what a pixel costs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cfg = AxialImageConfig(
            height=side, width=side, channels=1, n_values=16, dim=64, n_heads=4, encoder_layers=0,
            outer_layers=2, inner_layers=2,
        )  # fmt: skip
        return AxialImageModel(cfg).eval()
