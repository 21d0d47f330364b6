"""Crops of photographs: real, repeatable, and refused in words."""

import sys

import numpy as np
import pytest

from shoestring.data.photos import photo_crops
from shoestring.errors import MissingExtra


def test_crops_are_of_photographs_and_follow_the_seed():
    pytest.importorskip("skimage")
    crops = photo_crops(200, 8)
    assert crops.shape == (200, 3, 8, 8)
    assert crops.dtype == np.uint8
    assert np.array_equal(crops, photo_crops(200, 8))
    assert not np.array_equal(crops, photo_crops(200, 8, seed=1))
    values = crops.astype(float)
    beside = np.abs(values[..., 1:] - values[..., :-1]).mean()
    anywhere = np.abs(values - values[::-1]).mean()
    assert beside < anywhere / 4, "neighbours in a photograph are alike"
    assert photo_crops(2, 300).shape == (2, 3, 300, 300)


def test_without_scikit_image_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingExtra, match=r"shoestring\[vision\]"):
        photo_crops(1, 8)


@pytest.mark.parametrize(("count", "size", "name"), [(0, 8, "count"), (1, 0, "size"), (1, 301, "size")])
def test_bad_input_is_named(count, size, name):
    with pytest.raises(ValueError, match=f"{name}="):
        photo_crops(count, size)
