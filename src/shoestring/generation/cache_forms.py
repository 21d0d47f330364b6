"""How a decoder's cache may store keys and values, as data, and the empty store of each."""

from dataclasses import dataclass
from typing import Any

import torch

from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.paged_cache import PagedCache
from shoestring.generation.plane_cache import PlaneCache, PlaneFormat
from shoestring.generation.quantised_cache import QuantCache
from shoestring.generation.slot_cache import SlotCache
from shoestring.generation.tier_cache import TierCache
from shoestring.generation.token_cache import TokenCache
from shoestring.numbers.block_format import BlockFormat
from shoestring.numbers.cache_format import CacheFormat
from shoestring.numbers.tier_format import TierFormat
from shoestring.numbers.token_cache_format import TokenCacheFormat


@dataclass(frozen=True)
class DenseFormat:
    """Keys and values in full. dtype: theirs, by default the model's."""

    dtype: torch.dtype | None = None


CacheForm = DenseFormat | TokenCacheFormat | CacheFormat | BlockFormat | PlaneFormat | TierFormat
"""In full; every token in codes; old tokens in codes; in blocks; in bit planes; in tiers."""


def empty_cache(
    form: CacheForm, n_layers: int, batch: int, n_kv_heads: int, head_dim: int, **options: Any
) -> SlotCache:
    """An empty cache that stores in `form`. options: dtype (of what is in full), device, capacity.

    A `TierFormat` says in how many bits a policy stores later: until then its cache is in full.

    Raises: ValueError for sizes below 1, or codes that do not fit the channels of a head.
    """
    shape = n_layers, batch, n_kv_heads, head_dim
    match form:
        case DenseFormat():
            return DenseCache(*shape, **options | ({} if form.dtype is None else {"dtype": form.dtype}))
        case TokenCacheFormat():
            return TokenCache(*shape, form, **options)
        case CacheFormat():
            return QuantCache(*shape, form, **options)
        case BlockFormat():
            return PagedCache(*shape, form, **options)
        case PlaneFormat():
            return PlaneCache(*shape, form, **options)
        case TierFormat():
            return TierCache(*shape, **options)
