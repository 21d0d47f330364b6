import numpy as np
import pytest
import torch
from scipy import ndimage

from shoestring.data.pathfinder import Pathfinder, naive_joined


@pytest.mark.parametrize(("side", "count"), [(32, 6), (64, 6), (128, 2), (256, 1)])
def test_the_label_is_what_following_the_dashes_finds(side, count):
    task = Pathfinder(side, seed=7)
    for index in range(count):
        picture, label = task.sample(index)
        assert picture.shape == (side, side)
        assert label == index % 2
        assert naive_joined(picture) == label


def test_dashes_have_gaps():
    """What is joined is not one stroke: without a step across gaps no two discs ever meet."""
    picture, label = Pathfinder(64).sample(1)
    assert label == 1
    _, pieces = ndimage.label(picture > 64, np.ones((3, 3)))
    assert pieces > 20


def test_a_batch_is_pictures_as_sequences():
    task = Pathfinder(64, batch_size=2, seed=3)
    x, labels = task(4)
    assert x.shape == (2, 64 * 64, 1)
    assert labels.tolist() == [0, 1]
    for row, index in enumerate((8, 9)):
        picture = torch.from_numpy(task.sample(index)[0]).float() / 127.5 - 1
        assert torch.equal(x[row, :, 0], picture.flatten())
    assert (x.min().item(), x.max().item()) == (-1, 1)


def test_a_sample_is_a_function_of_seed_and_index():
    one, same, other = (Pathfinder(64, seed=seed).sample(2)[0] for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_other_sides_are_refused():
    with pytest.raises(ValueError, match="side=48 must be one of 32, 64, 128, 256"):
        Pathfinder(48)


def test_a_picture_without_discs_is_refused():
    with pytest.raises(ValueError, match="0 discs"):
        naive_joined(np.zeros((32, 32), np.uint8))
