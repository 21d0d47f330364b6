"""Photographs: what comes with scikit-image, and squares of them."""

import sys

import numpy as np
import pytest
import torch

from shoestring.data.photos import PHOTOS, load_photos, square_photo
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
