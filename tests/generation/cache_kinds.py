"""The caches that must keep the contract: a new one joins by one line in `KINDS`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from shoestring.generation.decoded_planes import DecodedPlaneCache
from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.paged_cache import PagedCache
from shoestring.generation.plane_cache import PlaneCache, PlaneFormat
from shoestring.generation.quantised_cache import QuantCache
from shoestring.generation.ring_cache import RingCache
from shoestring.generation.slot_cache import SlotCache
from shoestring.generation.tier_cache import TierCache
from shoestring.generation.token_cache import TokenCache
from shoestring.numbers.bit_planes import BitPlanes
from shoestring.numbers.block_format import BlockFormat
from shoestring.numbers.cache_format import CacheFormat
from shoestring.numbers.token_cache_format import TokenCacheFormat


@dataclass(frozen=True)
class CacheKind:
    """A cache under test. make(n_layers, batch, n_kv_heads, head_dim, dtype=…, capacity=…).

    step: the largest error of a stored value, in units of the spread of the values of its group, after one
    rounding (0: the cache is exact). tiers: whether slots can be recompressed.
    """

    name: str
    make: Callable[..., SlotCache]
    step: float = 0.0
    tiers: bool = False

    @property
    def exact(self) -> bool:
        return self.step == 0


def quantised(bits: int, group_size: int = 8, tail_tokens: int = 3) -> Callable[..., SlotCache]:
    form = CacheFormat(bits, group_size, tail_tokens)

    def make(n_layers: int, batch: int, heads: int, dim: int, **options: object) -> SlotCache:
        return QuantCache(n_layers, batch, heads, dim, form, **options)

    return make


def by_token(key_bits: int, value_bits: int) -> Callable[..., SlotCache]:
    form = TokenCacheFormat(key_bits, value_bits)

    def make(n_layers: int, batch: int, heads: int, dim: int, **options: object) -> SlotCache:
        return TokenCache(n_layers, batch, heads, dim, form, **options)

    return make


def paged(form: BlockFormat) -> Callable[..., SlotCache]:
    def make(n_layers: int, batch: int, heads: int, dim: int, **options: object) -> SlotCache:
        return PagedCache(n_layers, batch, heads, dim, form, **options)

    return make


def in_planes(
    keys: BitPlanes | None, value_bits: int | None, kind: type[PlaneCache] = PlaneCache
) -> Callable[..., SlotCache]:
    form = PlaneFormat(keys, value_bits)

    def make(n_layers: int, batch: int, heads: int, dim: int, **options: object) -> SlotCache:
        return kind(n_layers, batch, heads, dim, form, **options)

    return make


def ring(window: int) -> Callable[..., SlotCache]:
    def make(n_layers: int, batch: int, heads: int, dim: int, **options: object) -> SlotCache:
        return RingCache(n_layers, batch, heads, dim, window, 8, **options)

    return make


KINDS = [
    CacheKind("dense", DenseCache),
    CacheKind("ring, all in the window", ring(10_000)),
    CacheKind("quantised, all in the tail", quantised(4, tail_tokens=10_000)),
    CacheKind("quantised to 8 bits", quantised(8), step=1 / 255),
    CacheKind("quantised to 4 bits", quantised(4), step=1 / 15),
    CacheKind("quantised to 2 bits", quantised(2), step=1 / 3),
    CacheKind("by token in 8 bits", by_token(8, 8), step=1 / 255),
    CacheKind("by token, keys in float16 and values in 8 bits", by_token(16, 8), step=1 / 255),
    CacheKind("tiered", TierCache, tiers=True),
    CacheKind("paged", PagedCache),
    CacheKind("paged, blocks of 3", paged(BlockFormat(3))),
    CacheKind("paged, 8 bits", paged(BlockFormat(4, TokenCacheFormat(8, 8))), step=1 / 255),
    CacheKind(
        "paged, keys in 8 bits, values in 4", paged(BlockFormat(16, TokenCacheFormat(8, 4))), step=1 / 15
    ),
    CacheKind("in planes, all in full", in_planes(None, None)),
    CacheKind("in planes, 6 + 4 bits, values in 8", in_planes(BitPlanes(6, 4), 8), step=1 / 127),
    CacheKind("in planes, all in full, decoded", in_planes(None, None, DecodedPlaneCache)),
    CacheKind(
        "in planes, 6 + 4 bits, decoded", in_planes(BitPlanes(6, 4), 8, DecodedPlaneCache), step=1 / 127
    ),
]
EXACT = [kind for kind in KINDS if kind.exact]
HEAD_DIM = 32


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
