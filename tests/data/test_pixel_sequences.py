import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data import pixel_sequences
from shoestring.data.labelled_images import LabelledImages, TrainTest
from shoestring.data.pixel_sequences import (
    digit_pixels,
    fashion_pixels,
    mean_pool,
    naive_mean_pool,
    pixel_task,
)

pytest.importorskip("sklearn")


def pictures(n, height=28, width=28, seed=0):
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (n, height, width), dtype=np.uint8)
    return LabelledImages(images, draw.integers(0, 10, n, dtype=np.uint8))


@given(n=st.integers(1, 4), rows=st.integers(1, 5), columns=st.integers(1, 5), pool=st.integers(1, 4))
def test_pooling_is_the_mean_of_each_square(n, rows, columns, pool):
    images = pictures(n, rows * pool, columns * pool).images
    np.testing.assert_allclose(mean_pool(images, pool), naive_mean_pool(images, pool), rtol=1e-12)


def test_sequences_are_the_pictures_row_by_row_normalised_by_the_training_part():
    data = TrainTest(pictures(20, 4, 6), pictures(5, 4, 6, seed=1))
    task = pixel_task(data, 2)
    assert task.train.x.shape == (20, 6, 1)
    assert task.train.images.shape == (20, 1, 2, 3)
    assert task.train.x.mean().item() == pytest.approx(0, abs=1e-6)
    assert task.train.x.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    raw = [mean_pool(part.images, 2) for part in (data.train, data.test)]
    expected = (raw[1] - raw[0].mean()) / raw[0].std()
    torch.testing.assert_close(task.test.images[:, 0], torch.from_numpy(expected).float())
    assert task.test.labels.tolist() == data.test.labels.tolist()
    assert task.test.labels.dtype == torch.int64
    assert len(task.test) == 5


def test_a_drawn_part_depends_on_the_seed():
    data = TrainTest(pictures(30, 2, 2), pictures(9, 2, 2))
    tasks = [pixel_task(data, 1, train_size=10, test_size=4, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(tasks[0].train.x, tasks[1].train.x)
    assert not torch.equal(tasks[0].train.labels, tasks[2].train.labels)
    assert (len(tasks[0].train), len(tasks[0].test)) == (10, 4)
    for size in (0, 31):
        with pytest.raises(ValueError, match=f"train_size={size}"):
            pixel_task(data, 1, train_size=size)


@pytest.mark.parametrize(("side", "length"), [(28, 784), (14, 196), (7, 49)])
def test_fashion_comes_in_three_sizes(side, length, monkeypatch):
    monkeypatch.setattr(pixel_sequences, "load_fashion_mnist", lambda: TrainTest(pictures(6), pictures(3)))
    task = fashion_pixels(side, train_size=4)
    assert task.train.x.shape == (4, length, 1)
    assert task.test.images.shape == (3, 1, side, side)


def test_digits_have_64_pixels():
    task = digit_pixels(test_size=10)
    assert task.train.x.shape == (1437, 64, 1)
    assert task.test.images.shape == (10, 1, 8, 8)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="side=13"):
        fashion_pixels(13)
    with pytest.raises(ValueError, match="pool=3 does not divide pictures of 8 x 8"):
        mean_pool(np.zeros((1, 8, 8), np.uint8), 3)
