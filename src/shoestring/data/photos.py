"""Crops of colour photographs that come with scikit-image: real pictures without a download.

Source: the photographs of `skimage.data` (public domain or CC0): a portrait, a cat, coffee, a rocket.
"""

import numpy as np
from jaxtyping import UInt8

from shoestring.errors import MissingExtra

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


def photo_crops(count: int, size: int, *, seed: int = 0) -> UInt8[np.ndarray, "count 3 size size"]:
    """`count` squares of `size` x `size` pixels from random places of the photographs, by `seed`.

    Raises: MissingExtra without scikit-image; ValueError for a count below 1, or a size outside 1 … 300.
    """
    if count < 1:
        raise ValueError(f"count={count} must be 1 or more")
    if not 1 <= size <= 300:
        raise ValueError(f"size={size} must be 1 to 300: the smallest photograph has 300 rows")
    try:
        from skimage import data
    except ImportError as error:
        raise MissingExtra(
            "the photographs come with scikit-image, which is not installed: pip install 'shoestring[vision]'"
        ) from error
    photos = [getattr(data, name)() for name in PHOTOS]
    draw = np.random.default_rng(seed)
    crops = []
    for _ in range(count):
        photo = photos[draw.integers(len(photos))]
        top, left = (draw.integers(side - size + 1) for side in photo.shape[:2])
        crops.append(photo[top : top + size, left : left + size].transpose(2, 0, 1))
    return np.stack(crops)
