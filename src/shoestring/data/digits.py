"""Handwritten digits, 8 x 8, that come with scikit-learn: real pictures for runs of a few seconds.

Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository (its test part, 1,797 pictures with values 0 to 16).
"""

import numpy as np

from shoestring.data.labelled_images import LabelledImages, TrainTest
from shoestring.errors import MissingExtra

TEST_SIZE = 360


def load_digits(seed: int = 0) -> TrainTest:
    """1,437 training and 360 test pictures, split by `seed`; values scaled from 0..16 to 0..255.

    Raises: MissingExtra without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits as load_bundled
    except ImportError as error:
        raise MissingExtra(
            "the digits come with scikit-learn, which is not installed: pip install 'shoestring[vision]'"
        ) from error
    bundle = load_bundled()
    images = np.round(bundle.images * (255 / 16)).astype(np.uint8)
    labels = bundle.target.astype(np.uint8)
    order = np.random.default_rng(seed).permutation(len(labels))
    train, test = order[TEST_SIZE:], order[:TEST_SIZE]
    return TrainTest(LabelledImages(images[train], labels[train]), LabelledImages(images[test], labels[test]))
