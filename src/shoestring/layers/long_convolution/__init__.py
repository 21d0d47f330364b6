"""Convolutions as long as the sequence, their filters kept smooth or learned as butterflies."""

from shoestring.layers.long_convolution.h3 import H3LongConv
from shoestring.layers.long_convolution.learned_butterfly import ButterflyOptions, LearnedButterfly
from shoestring.layers.long_convolution.long_convolution import FeatureLongConv, LongConv, LongFilter
from shoestring.layers.long_convolution.squash import (
    KernelRegulariser,
    SmoothFrequency,
    SmoothTime,
    geometric_kernel,
    random_kernel,
    squash,
)

__all__ = [
    "ButterflyOptions",
    "FeatureLongConv",
    "H3LongConv",
    "KernelRegulariser",
    "LearnedButterfly",
    "LongConv",
    "LongFilter",
    "SmoothFrequency",
    "SmoothTime",
    "geometric_kernel",
    "random_kernel",
    "squash",
]
