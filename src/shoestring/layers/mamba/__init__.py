"""Mamba mixers: state spaces whose dynamics follow the input, in one direction and in both."""

from shoestring.layers.mamba.bidirectional_mamba import BidirectionalMamba, SharedBidirectionalMamba
from shoestring.layers.mamba.bidirectional_mamba2 import BidirectionalMamba2
from shoestring.layers.mamba.mamba import MambaMixer
from shoestring.layers.mamba.mamba2 import Mamba2Mixer

__all__ = [
    "BidirectionalMamba",
    "BidirectionalMamba2",
    "Mamba2Mixer",
    "MambaMixer",
    "SharedBidirectionalMamba",
]
