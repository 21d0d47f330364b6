"""Cascade token and head pruning, local value pruning and progressive quantisation of attention (SpAtten)."""

from shoestring.generation.spatten.encoder import CascadeEncoder
from shoestring.generation.spatten.policy import HeadUnit, Pruning, SpAtten
from shoestring.generation.spatten.progressive import ProgressiveAttention, naive_progressive_attention
from shoestring.generation.spatten.schedule import (
    KeepSchedule,
    count_schedule,
    gpt2_medium_heads,
    gpt2_medium_tokens,
    linear_schedule,
    share_schedule,
)
from shoestring.generation.spatten.start_recent_important import StartRecentImportant
from shoestring.generation.spatten.token_scores import TokenScores

__all__ = [
    "CascadeEncoder",
    "HeadUnit",
    "KeepSchedule",
    "ProgressiveAttention",
    "Pruning",
    "SpAtten",
    "StartRecentImportant",
    "TokenScores",
    "count_schedule",
    "gpt2_medium_heads",
    "gpt2_medium_tokens",
    "linear_schedule",
    "naive_progressive_attention",
    "share_schedule",
]
