"""`nn.Module`s with a cheaper forward."""

from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear, PackedWeight

__all__ = ["PackedEmbedding", "PackedLinear", "PackedWeight"]
