"""How many bytes a cache will take, before there is one."""

from typing import Any

import torch

from shoestring.numbers.cache_format import CacheFormat
from shoestring.numbers.token_cache_format import TokenCacheFormat

POSITION_BYTES = 4
COUNT_BYTES = 8


def bytes_for(
    config: Any,
    context: int,
    form: CacheFormat | TokenCacheFormat | None = None,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Bytes of a `DenseCache` (form None), `TokenCache` or `QuantCache` made with capacity=context, which
    it is until it must hold more than `context` tokens a sample.

    config: has num_hidden_layers, num_attention_heads, num_key_value_heads and head_dim (or hidden_size), as
    the configurations of transformers have. dtype: of keys and values in full.

    Raises: ValueError for a context below 1, or where the form does not fit the channels of a head.
    """
    if context < 1 or batch < 1:
        raise ValueError(f"context={context} tokens and batch={batch} must be at least 1.")
    heads, dim = kv_shape(config)
    token = 2 * heads * dim * dtype.itemsize
    # Positions, and one slot count per sample for every table of slots.
    tables = batch * (POSITION_BYTES * context + COUNT_BYTES)
    if form is None:
        layer = batch * token * context
    elif isinstance(form, TokenCacheFormat):
        layer = batch * form.token_bytes(heads, dim) * context
    else:
        blocks = form.quantised_tokens(context) // form.group_size
        tail = batch * (token * min(context, form.tail_capacity) + COUNT_BYTES)
        layer = batch * blocks * form.block_bytes(heads, dim) + tail
    return int(config.num_hidden_layers) * (layer + tables)


def kv_shape(config: Any) -> tuple[int, int]:
    """KV heads and channels per head of a model with this configuration."""
    heads = int(config.num_attention_heads)
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(getattr(config, "num_key_value_heads", None) or heads), int(dim)
