"""Pictures read as sequences, one pixel a step: the smallest real task for a model of long sequences.

Source: Le, Jaitly and Hinton 2015, "A Simple Way to Initialize Recurrent Networks of Rectified Linear Units",
section 4.2 (pixel-by-pixel MNIST).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoestring.data.digits import load_digits
from shoestring.data.fashion_mnist import load_fashion_mnist
from shoestring.data.labelled_images import LabelledImages, TrainTest
from shoestring.data.seeded import numpy_generator

CLASSES = 10


@dataclass(frozen=True)
class PixelSequences:
    """Pictures as rows of grey values, of mean 0 and variance 1 over the training pictures, with classes."""

    x: Float[Tensor, "n length 1"]
    labels: Int[Tensor, " n"]
    height: int
    width: int

    @property
    def images(self) -> Float[Tensor, "n 1 height width"]:
        """The same values as pictures."""
        return self.x.view(-1, 1, self.height, self.width)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class PixelTask:
    """The two parts, normalised alike."""

    train: PixelSequences
    test: PixelSequences


def fashion_pixels(
    side: int = 28, *, train_size: int | None = None, test_size: int | None = None, seed: int = 0
) -> PixelTask:
    """Fashion-MNIST with `side` · `side` steps, where `side` divides 28; smaller ones are means of squares.

    train_size, test_size: how many pictures, drawn by `seed`; all by default.
    Raises: as `load_fashion_mnist` and `pixel_task`; ValueError for a side that does not divide 28.
    """
    if side < 1 or 28 % side:
        raise ValueError(f"side={side} must divide 28; use 28, 14 or 7")
    return pixel_task(load_fashion_mnist(), 28 // side, train_size=train_size, test_size=test_size, seed=seed)


def digit_pixels(*, train_size: int | None = None, test_size: int | None = None, seed: int = 0) -> PixelTask:
    """The 8 x 8 digits of scikit-learn, 64 steps. Raises: as `load_digits` and `pixel_task`."""
    return pixel_task(load_digits(seed), 1, train_size=train_size, test_size=test_size, seed=seed)


def pixel_task(
    data: TrainTest, pool: int, *, train_size: int | None = None, test_size: int | None = None, seed: int = 0
) -> PixelTask:
    """Any pictures as sequences, after taking means over squares of `pool` pixels.

    Raises: ValueError for sides that `pool` does not divide, or more pictures than there are.
    """
    train = _drawn(data.train, train_size, seed, "train_size")
    test = _drawn(data.test, test_size, seed, "test_size")
    pooled = [mean_pool(part.images, pool) for part in (train, test)]
    mean, deviation = pooled[0].mean(), max(pooled[0].std(), 1e-12)
    sequences = [
        PixelSequences(
            torch.from_numpy((values - mean) / deviation).float().flatten(1).unsqueeze(-1),
            torch.from_numpy(part.labels).long(),
            *values.shape[1:],
        )
        for values, part in zip(pooled, (train, test), strict=True)
    ]
    return PixelTask(*sequences)


def mean_pool(images: np.ndarray, pool: int) -> Float[np.ndarray, "n height width"]:
    """Means over squares of `pool` pixels. Raises: ValueError where it does not divide both sides."""
    n, height, width = images.shape
    if pool < 1 or height % pool or width % pool:
        raise ValueError(f"pool={pool} does not divide pictures of {height} x {width}")
    squares = images.reshape(n, height // pool, pool, width // pool, pool)
    return squares.mean(axis=(2, 4), dtype=np.float64)


def naive_mean_pool(images: np.ndarray, pool: int) -> Float[np.ndarray, "n height width"]:
    """`mean_pool`, one square at a time."""
    n, height, width = images.shape
    result = np.empty((n, height // pool, width // pool))
    for i in range(height // pool):
        for j in range(width // pool):
            square = images[:, i * pool : (i + 1) * pool, j * pool : (j + 1) * pool].astype(np.float64)
            result[:, i, j] = square.sum(axis=(1, 2)) / pool**2
    return result


def _drawn(data: LabelledImages, size: int | None, seed: int, name: str) -> LabelledImages:
    if size is None:
        return data
    if not 1 <= size <= len(data):
        raise ValueError(f"{name}={size} must lie within 1 .. {len(data)}")
    rows = numpy_generator(seed).permutation(len(data))[:size]
    return LabelledImages(data.images[rows], data.labels[rows])
