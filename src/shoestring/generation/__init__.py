"""Decode loop, sampling and the KV caches."""

from typing import TYPE_CHECKING, Any

from shoestring.generation.batch_memory import BatchMemory, batch_memory
from shoestring.generation.block_allocator import BlockAllocator, FreedBlock, OutOfBlocks
from shoestring.generation.cache_bytes import bytes_for
from shoestring.generation.cache_forms import CacheForm, DenseFormat
from shoestring.generation.clusters import ClusterOptions, LinearSimilarity, mpcache_select
from shoestring.generation.combination import combined_cache
from shoestring.generation.decode import Finish, Generation, Piece, Stream, generate, stream
from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.evicting_cache import (
    ByChance,
    ByImportance,
    ByRecency,
    CachePolicy,
    Evicting,
    Inverted,
    Ranking,
)
from shoestring.generation.hybrid_cache import HybridCache
from shoestring.generation.importance import ColumnImportance
from shoestring.generation.important_tokens import FixedShare, TopMass
from shoestring.generation.mpcache import KeepAbove, KeepShare, MPCache
from shoestring.generation.paged_cache import PagedCache
from shoestring.generation.plane_cache import PlaneCache, PlaneFormat
from shoestring.generation.quantised_cache import QuantCache
from shoestring.generation.ring_cache import RingCache
from shoestring.generation.sampling import Sampling
from shoestring.generation.selection import marked_slots, top_k, top_mass
from shoestring.generation.semi_parallel import gumbel_noise, sample_images
from shoestring.generation.shared_rows import SharedRows
from shoestring.generation.slot_cache import SlotCache
from shoestring.generation.speculation.prompt_lookup import PromptLookup
from shoestring.generation.tier_cache import TierCache, tier_cache
from shoestring.generation.token_cache import TokenCache
from shoestring.generation.zipvl import ZipVL
from shoestring.generation.zipvl_options import ZipVLOptions

if TYPE_CHECKING:
    from shoestring.generation.transformers_cache import TransformersCache

__all__ = [
    "BatchMemory",
    "BlockAllocator",
    "ByChance",
    "ByImportance",
    "ByRecency",
    "CacheForm",
    "CachePolicy",
    "ClusterOptions",
    "ColumnImportance",
    "DenseCache",
    "DenseFormat",
    "Evicting",
    "Finish",
    "FixedShare",
    "FreedBlock",
    "Generation",
    "HybridCache",
    "Inverted",
    "KeepAbove",
    "KeepShare",
    "LinearSimilarity",
    "MPCache",
    "OutOfBlocks",
    "PagedCache",
    "Piece",
    "PlaneCache",
    "PlaneFormat",
    "PromptLookup",
    "QuantCache",
    "Ranking",
    "RingCache",
    "Sampling",
    "SharedRows",
    "SlotCache",
    "Stream",
    "TierCache",
    "TokenCache",
    "TopMass",
    "TransformersCache",
    "ZipVL",
    "ZipVLOptions",
    "batch_memory",
    "bytes_for",
    "combined_cache",
    "generate",
    "gumbel_noise",
    "marked_slots",
    "mpcache_select",
    "sample_images",
    "stream",
    "tier_cache",
    "top_k",
    "top_mass",
]


def __getattr__(name: str) -> Any:
    """Import transformers only for the one class that is made of it: half a second of every start."""
    if name != "TransformersCache":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from shoestring.generation.transformers_cache import TransformersCache

    return TransformersCache
