"""Decode loop, sampling and the KV caches."""

from typing import TYPE_CHECKING, Any

from shoestring.generation.batch_memory import BatchMemory, batch_memory
from shoestring.generation.block_allocator import BlockAllocator, FreedBlock, OutOfBlocks
from shoestring.generation.cache_bytes import bytes_for
from shoestring.generation.decode import Finish, Generation, Piece, Stream, generate, stream
from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.paged_cache import PagedCache
from shoestring.generation.quantised_cache import QuantCache
from shoestring.generation.ring_cache import RingCache
from shoestring.generation.sampling import Sampling
from shoestring.generation.semi_parallel import gumbel_noise, sample_images
from shoestring.generation.shared_rows import SharedRows
from shoestring.generation.slot_cache import SlotCache
from shoestring.generation.speculation.prompt_lookup import PromptLookup
from shoestring.generation.token_cache import TokenCache

if TYPE_CHECKING:
    from shoestring.generation.transformers_cache import TransformersCache

__all__ = [
    "BatchMemory",
    "BlockAllocator",
    "DenseCache",
    "Finish",
    "FreedBlock",
    "Generation",
    "OutOfBlocks",
    "PagedCache",
    "Piece",
    "PromptLookup",
    "QuantCache",
    "RingCache",
    "Sampling",
    "SharedRows",
    "SlotCache",
    "Stream",
    "TokenCache",
    "TransformersCache",
    "batch_memory",
    "bytes_for",
    "generate",
    "gumbel_noise",
    "sample_images",
    "stream",
]


def __getattr__(name: str) -> Any:
    """Import transformers only for the one class that is made of it: half a second of every start."""
    if name != "TransformersCache":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from shoestring.generation.transformers_cache import TransformersCache

    return TransformersCache
