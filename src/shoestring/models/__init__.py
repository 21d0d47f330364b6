"""Whole networks assembled from layers, and the protocols by which others take part in them."""

from shoestring.models.conv_nets import PlainConvNet, ResidualNet
from shoestring.models.protocols import CacheCannot, KVCache, KVView, Traffic

__all__ = [
    "CacheCannot",
    "KVCache",
    "KVView",
    "PlainConvNet",
    "ResidualNet",
    "Traffic",
]
