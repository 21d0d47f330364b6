"""Speculative decoding: drafts, their verification in one pass, and the rules that accept tokens."""

from shoestring.generation.speculation.acceptance import follow, follow_drawn
from shoestring.generation.speculation.draft import Draft, Speculation
from shoestring.generation.speculation.draft_length import FixedLength, LengthRule, MeasuredLength
from shoestring.generation.speculation.draft_tree import DraftTree
from shoestring.generation.speculation.glide import Glide
from shoestring.generation.speculation.prompt_lookup import PromptLookup
from shoestring.generation.speculation.target import Target
from shoestring.generation.speculation.tree_attention import TreeAttention, tree_attend

__all__ = [
    "Draft",
    "DraftTree",
    "FixedLength",
    "Glide",
    "LengthRule",
    "MeasuredLength",
    "PromptLookup",
    "Speculation",
    "Target",
    "TreeAttention",
    "follow",
    "follow_drawn",
    "tree_attend",
]
