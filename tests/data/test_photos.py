"""Photographs: what comes with scikit-image, and squares of them."""

import sys

import numpy as np
import pytest
import torch

from shoestring.data.photos import PHOTOS, load_photos, photo_crops, square_photo
from shoestring.errors import MissingExtra


def test_photographs_of_scikit_image():
    pytest.importorskip("skimage")
    photos = load_photos()
    assert len(photos) == len(PHOTOS)
    assert all(photo.dtype == np.uint8 and min(photo.shape[:2]) >= 300 for photo in photos)


def test_a_square_is_the_middle_resized_and_normalised():
    photo = np.zeros((10, 30, 3), np.uint8)
    photo[:, 10:15] = 200
    photo[:, :10] = 77
    square = square_photo(photo, 10)
    torch.testing.assert_close(square.mean((1, 2)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(square.square().mean((1, 2)), torch.ones(3))
    assert (square[:, :, :4] > 0.9).all()
    assert (square[:, :, 6:] < -0.9).all()
    assert square_photo(photo, 37).shape == (3, 37, 37)


def test_bad_input(monkeypatch):
    with pytest.raises(ValueError, match="side=0 must be at least 1"):
        square_photo(np.zeros((4, 4, 3), np.uint8), 0)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingExtra, match=r"shoestring\[vision\]"):
        load_photos()


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


@pytest.mark.parametrize(("count", "size", "name"), [(0, 8, "count"), (1, 0, "size"), (1, 301, "size")])
def test_bad_crops_are_named(count, size, name):
    with pytest.raises(ValueError, match=f"{name}="):
        photo_crops(count, size)
