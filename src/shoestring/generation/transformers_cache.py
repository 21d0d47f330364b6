"""The caches of this library inside models of the transformers library, through its own `Cache` interface.

model.generate(**inputs, past_key_values=TransformersCache(CacheFormat(bits=4)))
"""

import functools
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from shoestring.generation.dense_cache import DenseStore, dense_store
from shoestring.generation.quantised_cache import QuantStore, quant_store
from shoestring.generation.token_cache import TokenStore, token_store
from shoestring.models.protocols import CacheCannot
from shoestring.numbers.cache_format import CacheFormat
from shoestring.numbers.token_cache_format import TokenCacheFormat

HOLDABLE = ("full_attention", "sliding_attention", "attention")


class TransformersCache(Cache):
    """A cache for `past_key_values=` of any causal language model of transformers whose layers are attention.

    form: how old tokens are stored; None keeps everything in full, without copying it at every step as
    `DynamicCache` does. capacity: tokens to allocate per sample at once. config: the model's, to refuse other
    layers at once. Layers with a sliding window keep all tokens; the model masks the old ones.

    Raises: ValueError where the form does not fit a head's channels, or a layer is no attention.
    """

    def __init__(
        self,
        form: CacheFormat | TokenCacheFormat | None = None,
        *,
        capacity: int = 0,
        config: Any = None,
    ) -> None:
        make_layer: Any = functools.partial(SlotLayer, form, capacity)
        super().__init__(layer_class_to_replicate=make_layer)
        for number, kind in enumerate(getattr(config, "layer_types", None) or ()):
            if kind not in HOLDABLE:
                raise ValueError(
                    f"layer {number} is {kind!r}, whose state is no keys and values; use DynamicCache."
                )

    @property
    def nbytes(self) -> int:
        """Bytes held: keys, values, scales, positions, reserve."""
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, SlotLayer))


class SlotLayer(CacheLayerMixin):
    """One layer's store behind the interface that transformers asks for."""

    is_sliding = False
    is_croppable = True

    def __init__(self, form: CacheFormat | TokenCacheFormat | None, capacity: int) -> None:
        super().__init__()
        self.form, self.capacity = form, capacity
        self.store: DenseStore | TokenStore | QuantStore | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held by this layer."""
        return 0 if self.store is None else sum(self.store.nbytes.values())

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make an empty store of the kind of keys that are given."""
        if key_states.shape != value_states.shape:
            raise ValueError(
                f"keys {tuple(key_states.shape)} and values {tuple(value_states.shape)} differ in shape; "
                "this cache holds both alike, use DynamicCache."
            )
        batch, heads, _, dim = key_states.shape
        options: dict[str, Any] = {
            "dtype": key_states.dtype,
            "device": key_states.device,
            "capacity": self.capacity,
        }
        if self.form is None:
            self.store = dense_store(batch, heads, dim, **options)
        elif isinstance(self.form, TokenCacheFormat):
            self.store = token_store(batch, heads, dim, self.form, **options)
        else:
            self.store = quant_store(batch, heads, dim, self.form, **options)
        self.is_initialized = True

    def update(
        self,
        key_states: Float[Tensor, "batch heads n dim"],
        value_states: Float[Tensor, "batch heads n dim"],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Store the new tokens; all keys and values for this step, the new ones in full."""
        if self.store is None:
            self.lazy_initialization(key_states, value_states)
        assert self.store is not None
        batch, _, n, _ = key_states.shape
        start = self.get_seq_length()
        pos = torch.arange(start, start + n, device=key_states.device).expand(batch, n)
        if not isinstance(self.form, CacheFormat) or n <= self.form.tail_tokens:
            self.store.append(key_states, value_states, pos, None)
            return self.store.keys_values()
        # A long chunk is rounded for later steps only, as in the KIVI paper: it still sees itself in full.
        k, v = self.store.keys_values()
        k, v = torch.cat([k, key_states], dim=2), torch.cat([v, value_states], dim=2)
        self.store.append(key_states, value_states, pos, None)
        return k, v

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that the next `query_length` tokens will see, and the position of the first."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens held."""
        return 0 if self.store is None else self.store.table.longest

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.store, self.is_initialized = None, False

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last −`tokens_to_remove` tokens. Raises: ValueError for a positive number."""
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop({tokens_to_remove}): pass the number of tokens to remove as a negative one."
            )
        if self.store is not None and tokens_to_remove:
            self.store.truncate((self.store.table.counts + tokens_to_remove).clamp(min=0))

    def reorder_cache(self, beam_idx: Int[Tensor, " new_batch"]) -> None:
        """Make sample i a copy of the present sample `beam_idx[i]`."""
        if self.store is not None:
            self.store.reorder(beam_idx.to(self.store.table.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample."""
        if self.store is not None:
            batch = torch.arange(self.store.table.batch, device=self.store.table.device)
            self.store.reorder(batch.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Int[Tensor, " new_batch"]) -> None:
        """Keep these samples only."""
        self.reorder_cache(indices)

    def offload(self) -> None:
        """Raises: CacheCannot."""
        raise CacheCannot("offload", "this cache stays on the model's device; use DynamicCache to offload")
