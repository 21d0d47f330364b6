"""Whole networks assembled from layers."""

from shoestring.models.conv_nets import PlainConvNet, ResidualNet

__all__ = ["PlainConvNet", "ResidualNet"]
