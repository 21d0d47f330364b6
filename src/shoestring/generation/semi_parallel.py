"""Pictures drawn from a model that factorises channel by channel, row by row, column by column.

Noise is fixed beforehand, and each value is argmax(logits / temperature + noise): with Gumbel noise that is a
draw from the model, and three ways of drawing give the same picture. Naive: the whole model for each pixel.
Semi-parallel: what the rows above say once a row, all of it in parallel, and one row of the model for each
pixel. Stepped: each finished row and pixel goes through the model once.

Source: Ho et al. 2019, "Axial Attention in Multidimensional Transformers", section 3.4.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Images = Int[Tensor, "batch channels height width"]
Noise = Float[Tensor, "..."]
"""(batch, channels, height, width, n_values), which is checked with a message that says what is wrong."""
Pixels = Iterator[tuple[Images, tuple[int, int, int]]]


@runtime_checkable
class PixelSteps(Protocol):
    """One channel, pixel by pixel: logits are asked for, a value is given back."""

    def logits(self) -> Float[Tensor, "batch n_values"]: ...

    def take(self, values: Int[Tensor, " batch"]) -> None: ...


@runtime_checkable
class ImageShape(Protocol):
    """What a sampler must know of a model's configuration."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        ...

    @property
    def n_values(self) -> int: ...


@runtime_checkable
class ChannelModel(Protocol):
    """Gives all logits of a channel; those of a position depend on what comes before it only."""

    @property
    def cfg(self) -> ImageShape: ...

    def channel_logits(
        self, images: Images, channel: int
    ) -> Float[Tensor, "batch height width n_values"]: ...


@runtime_checkable
class RowModel(Protocol):
    """Can tell what is above a row from what is in it."""

    @property
    def cfg(self) -> ImageShape: ...

    def encode(self, images: Images, channel: int) -> Float[Tensor, "batch height width dim"] | None:
        """What earlier channels say about each position."""
        ...

    def upper_context(
        self,
        values: Int[Tensor, "batch height width"],
        condition: Float[Tensor, "batch height width dim"] | None,
    ) -> Float[Tensor, "batch height width dim"]:
        """What the rows above say about each position."""
        ...

    def row_logits(
        self,
        values: Int[Tensor, "batch rows width"],
        upper: Float[Tensor, "batch rows width dim"],
        condition: Float[Tensor, "batch rows width dim"] | None,
        first_row: int,
    ) -> Float[Tensor, "batch rows width n_values"]:
        """Logits of some rows from their own values, what is above them and what earlier channels say."""
        ...


@runtime_checkable
class SteppedModel(Protocol):
    """Can take pixel after pixel without computing anything twice."""

    @property
    def cfg(self) -> ImageShape: ...

    def encode(self, images: Images, channel: int) -> Float[Tensor, "batch height width dim"] | None: ...

    def start(self, condition: Float[Tensor, "batch height width dim"] | None, batch: int) -> PixelSteps: ...


def gumbel_noise(
    shape: ImageShape, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Noise:
    """Noise for `batch` pictures: argmax(logits + noise) is then a draw from softmax(logits).

    On the generator's device. Source: Gumbel 1954; Maddison et al. 2014, "A* Sampling", section 2.
    """
    sizes = batch, *shape.image_shape, shape.n_values
    # In double precision, and never 0: its logarithm is taken.
    uniform = torch.rand(sizes, generator=generator, dtype=torch.float64, device=generator.device)
    uniform = uniform.clamp_min(torch.finfo(torch.float64).tiny)
    return uniform.log().neg().log().neg().to(dtype)


def naive_pixels(model: ChannelModel, noise: Noise, *, temperature: float | int = 1.0) -> Pixels:
    """Draw by the whole model for each pixel: the meaning of the other two.

    After each pixel come the images so far (values not drawn yet are 0) and its (channel, row, column).
    Raises: ValueError for noise of another shape, or a temperature that is not above 0.
    """
    images = _blank(model.cfg, noise, temperature)
    channels, height, width = model.cfg.image_shape
    with torch.no_grad():
        for s in range(channels):
            for r in range(height):
                for c in range(width):
                    logits = model.channel_logits(images, s)[:, r, c]
                    images[:, s, r, c] = _choose(logits, noise[:, s, r, c], temperature)
                    yield images, (s, r, c)


def semi_parallel_pixels(model: RowModel, noise: Noise, *, temperature: float | int = 1.0) -> Pixels:
    """Draw with what is above a row computed once for the row; results and errors as in `naive_pixels`."""
    images = _blank(model.cfg, noise, temperature)
    channels, height, width = model.cfg.image_shape
    with torch.no_grad():
        for s in range(channels):
            condition = model.encode(images, s)
            for r in range(height):
                rows = slice(r, r + 1)
                upper = model.upper_context(images[:, s], condition)[:, rows]
                beside = None if condition is None else condition[:, rows]
                for c in range(width):
                    logits = model.row_logits(images[:, s, rows], upper, beside, r)[:, 0, c]
                    images[:, s, r, c] = _choose(logits, noise[:, s, r, c], temperature)
                    yield images, (s, r, c)


def stepped_pixels(model: SteppedModel, noise: Noise, *, temperature: float | int = 1.0) -> Pixels:
    """Draw with every finished row and pixel kept; results and errors as in `naive_pixels`."""
    images = _blank(model.cfg, noise, temperature)
    channels, height, width = model.cfg.image_shape
    with torch.no_grad():
        for s in range(channels):
            steps = model.start(model.encode(images, s), len(noise))
            for r in range(height):
                for c in range(width):
                    values = _choose(steps.logits(), noise[:, s, r, c], temperature)
                    steps.take(values)
                    images[:, s, r, c] = values
                    yield images, (s, r, c)


def sample_images(
    model: Any,
    noise: Noise,
    *,
    temperature: float | int = 1.0,
    pixels: Callable[..., Pixels] = stepped_pixels,
) -> Images:
    """Whole pictures by one of the three ways, `stepped_pixels` unless told.

    The model must offer what that way asks for, and be in eval mode: dropout would make the ways differ.
    Raises: ValueError for noise of another shape, or a temperature that is not above 0.
    """
    *_, (images, _) = pixels(model, noise, temperature=temperature)
    return images


def _choose(
    logits: Float[Tensor, "batch n_values"],
    noise: Float[Tensor, "batch n_values"],
    temperature: float | int,
) -> Int[Tensor, " batch"]:
    return (logits / temperature + noise).argmax(-1)


def _blank(shape: ImageShape, noise: Tensor, temperature: float | int) -> Images:
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0; the paper draws at 0.99 to 1")
    wanted = *shape.image_shape, shape.n_values
    if noise.dim() != 5 or tuple(noise.shape[1:]) != wanted or not len(noise):
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}; this model wants (batch, "
            f"{', '.join(map(str, wanted))}): channels, height, width, values"
        )
    return torch.zeros(noise.shape[:-1], dtype=torch.long, device=noise.device)
