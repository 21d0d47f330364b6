"""Images as sequences of patches and back."""

from shoestring.layers.patches.feature_pyramid import FeaturePyramid
from shoestring.layers.patches.patch_embedding import PatchEmbedding
from shoestring.layers.patches.patch_tokens import ClassToken, PatchTokens

__all__ = [
    "ClassToken",
    "FeaturePyramid",
    "PatchEmbedding",
    "PatchTokens",
]
