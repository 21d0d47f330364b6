"""Large colour pictures on a GPU, trained and drawn, beside a row-major transformer with flash attention."""

from collections.abc import Callable
from itertools import islice
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from shoestring.generation.semi_parallel import gumbel_noise, stepped_pixels
from shoestring.layers.axial.line_attention import AttentionBlock
from shoestring.models.axial_image_config import AxialImageConfig
from shoestring.models.axial_image_model import AxialImageModel
from shoestring.systems.axial_transformer.claims import GPU_SAMPLING, GPU_TRAINING
from shoestring.systems.axial_transformer.rivals import RowMajorModel
from shoestring.systems.card import Claim
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.timing import InterleavedTimes, time_interleaved

LARGE = AxialImageConfig(height=64, width=64, dim=256, n_heads=8)


def gpu_rows(cfg: AxialImageConfig, batch: int, drawn: int, device: str, seed: int) -> list[Row]:
    """Rows of time for a training picture and for a drawn value, of which each model draws `drawn`.

    Both in bfloat16: training under autocast, drawing with weights of that type.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        axial = AxialImageModel(cfg).to(device)
        full = RowMajorModel(cfg, cfg.encoder_layers + cfg.outer_layers + cfg.inner_layers).to(device)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(cfg.n_values, (batch, *cfg.image_shape), generator=generator).to(device)
    training = {
        "axial": _training(axial, images, generator),
        "full": _training(full, images, generator),
    }
    trained = time_interleaved(training, rounds=5)
    drawing = {
        "axial": _axial_drawing(axial.to(torch.bfloat16).eval(), batch, drawn, seed),
        "full": _full_drawing(full.to(torch.bfloat16).eval(), batch, drawn),
    }
    sampled = time_interleaved(drawing, rounds=3, warmup=1, min_sample_seconds=0)
    return [_row(GPU_TRAINING, trained, batch), _row(GPU_SAMPLING, sampled, batch * drawn)]


def _training(
    model: nn.Module, images: Int[Tensor, "batch channels height width"], generator: torch.Generator
) -> Callable[[], None]:
    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16):
            loss: Any = model.loss(images, generator)  # type: ignore[operator]
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def _axial_drawing(model: AxialImageModel, batch: int, drawn: int, seed: int) -> Callable[[], None]:
    noise = gumbel_noise(model.cfg, batch, torch.Generator().manual_seed(seed))
    noise = noise.to(model.to_logits.weight.device)

    def draw() -> None:
        for _ in islice(stepped_pixels(model, noise), drawn):
            pass

    return draw


def _full_drawing(model: RowMajorModel, batch: int, drawn: int) -> Callable[[], None]:
    """Values in the middle of a picture, where the cache has the length that it has on average."""
    channels, height, width = model.cfg.image_shape
    room = channels * height * width
    blocks = [cast(AttentionBlock, block) for block in model.blocks]
    caches = [block.attention.cache(batch, room) for block in blocks]
    for cache in caches:
        cache.keys.zero_()
        cache.values.zero_()
    places = (model.channel[:, None, None] + model.position()).flatten(0, 2)

    @torch.no_grad()
    def draw() -> None:
        first = (room - drawn) // 2
        for cache in caches:
            cache.length = first
        value = torch.zeros(batch, dtype=torch.long, device=places.device)
        for place in range(first, first + drawn):
            value = model.step(model.embedding(value) + places[place], caches).argmax(-1)

    return draw


def _row(claim: Claim, timed: InterleavedTimes, count: int) -> Row:
    found = timed.figures("axial", "full")
    return claim.row(
        baseline=found["baseline"] / count,
        method=found["method"] / count,
        ratio=found["ratio"],
        spread=found["spread"],
    )
