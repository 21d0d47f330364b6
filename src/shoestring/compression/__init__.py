"""A trained model in, a smaller one out: recipes, calibration, saved folders."""

from shoestring.compression.activation_ranges import KullbackLeibler, MeanSquare, MinMax, Percentile
from shoestring.compression.conv_bn_fusion import fuse_conv_bn
from shoestring.compression.emulation import emulate, emulate_static

__all__ = [
    "KullbackLeibler",
    "MeanSquare",
    "MinMax",
    "Percentile",
    "emulate",
    "emulate_static",
    "fuse_conv_bn",
]
