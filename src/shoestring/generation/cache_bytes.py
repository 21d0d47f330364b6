"""How many bytes a cache will take, before there is one."""

from typing import Any

import torch

from shoestring.layers.mamba.grouped_mamba import MambaShape
from shoestring.models.layer_layout import LayerKind, read_mamba
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
    """Bytes of a `DenseCache` (form None), `TokenCache`, `QuantCache`, or hybrid of one, made with
    capacity=context, which it is until it must hold more than `context` tokens a sample.

    config: has num_hidden_layers, num_attention_heads, num_key_value_heads and head_dim (or hidden_size), as
    the configurations of transformers have; of a hybrid, layout and mamba, as `DecoderConfig`: its states are
    counted too. dtype: of keys and values in full.

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
    layout = getattr(config, "layout", None) or LayerKind.ATTENTION * int(config.num_hidden_layers)
    attention = list(layout).count(LayerKind.ATTENTION)
    mamba = list(layout).count(LayerKind.MAMBA)
    states = mamba * _state_bytes(config, dtype) if mamba else 0
    empty = (len(layout) - attention) * COUNT_BYTES
    return attention * (layer + tables) + batch * (states + empty)


def _state_bytes(config: Any, dtype: torch.dtype) -> int:
    """Of one sample in one Mamba layer: inputs of the convolution in `dtype`, the state in float32."""
    shape = config.mamba if isinstance(config.mamba, MambaShape) else read_mamba(config.mamba)
    inner = int(config.num_attention_heads) * kv_shape(config)[1]
    exact = torch.promote_types(dtype, torch.float32)
    return inner * ((shape.d_conv - 1) * dtype.itemsize + shape.d_state * exact.itemsize)


def kv_shape(config: Any) -> tuple[int, int]:
    """KV heads and channels per head of a model with this configuration."""
    heads = int(config.num_attention_heads)
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(getattr(config, "num_key_value_heads", None) or heads), int(dim)
