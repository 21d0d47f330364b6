"""Small real data and seeded generators."""

from shoestring.data.digits import load_digits
from shoestring.data.fashion_mnist import load_fashion_mnist
from shoestring.data.labelled_images import LabelledImages, TrainTest

__all__ = ["LabelledImages", "TrainTest", "load_digits", "load_fashion_mnist"]
