"""Axial attention: along one axis of a grid at a time."""

from shoestring.layers.axial.along_axis import AlongAxis
from shoestring.layers.axial.axial_attention import AxialAttention, AxialBlocks
from shoestring.layers.axial.line_attention import AttentionBlock, LineAttention

__all__ = [
    "AlongAxis",
    "AttentionBlock",
    "AxialAttention",
    "AxialBlocks",
    "LineAttention",
]
