"""Colour photographs that come with scikit-image: real pictures for measurements at any resolution."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from shoestring.errors import MissingExtra

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
"""Names in scikit-image; the smallest is 300 x 451. They are part of its package: nothing is fetched."""


def load_photos() -> list[UInt8[np.ndarray, "height width 3"]]:
    """The photographs named in PHOTOS. Raises: MissingExtra without scikit-image."""
    try:
        from skimage import data
    except ImportError as error:
        raise MissingExtra(
            "the photographs come with scikit-image, which is not installed: pip install 'shoestring[vision]'"
        ) from error
    return [getattr(data, name)() for name in PHOTOS]


def square_photo(photo: UInt8[np.ndarray, "height width 3"], side: int) -> Float[Tensor, "3 side side"]:
    """The middle square of a photograph, resized bicubically; each channel of mean 0 and variance 1.

    Raises: ValueError for a side below 1.
    """
    if side < 1:
        raise ValueError(f"side={side} must be at least 1")
    height, width = photo.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = torch.from_numpy(photo[top : top + edge, left : left + edge].copy()).permute(2, 0, 1).float()
    resized = F.interpolate(square[None], (side, side), mode="bicubic", antialias=True)[0]
    centred = resized - resized.mean((1, 2), keepdim=True)
    return centred / centred.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-6)
