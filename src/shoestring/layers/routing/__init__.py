"""Routing attention: each token attends to its window and to those that share its cluster."""

from shoestring.layers.routing.routing_attention import HeadSplit, RoutingAttention
from shoestring.layers.routing.routing_options import RoutingOptions

__all__ = [
    "HeadSplit",
    "RoutingAttention",
    "RoutingOptions",
]
