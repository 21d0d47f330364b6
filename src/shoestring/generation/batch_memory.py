"""How many sequences fit a memory: weights, pruned or not, a KV cache for each, and the buffers of a step."""

from dataclasses import dataclass

import torch

from shoestring.generation.cache_bytes import bytes_for
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.load import expected_shapes
from shoestring.numbers.bitmap_matrix import bitmap_bytes
from shoestring.numbers.cache_format import CacheFormat
from shoestring.numbers.sparse_values import ValueKind
from shoestring.numbers.token_cache_format import TokenCacheFormat


@dataclass(frozen=True)
class BatchMemory:
    """Bytes of a model at work: once for the weights, and for each sequence its cache and its buffers."""

    weights: int
    cache_of_each: int
    buffers_of_each: int

    def total(self, batch: int) -> int:
        """Bytes for `batch` sequences."""
        return self.weights + batch * (self.cache_of_each + self.buffers_of_each)

    def max_batch(self, memory_bytes: int) -> int:
        """The most sequences that fit; 0 where not even one does."""
        return max(0, (memory_bytes - self.weights) // (self.cache_of_each + self.buffers_of_each))


def batch_memory(
    cfg: DecoderConfig,
    context: int,
    *,
    sparsity: float | int | None = None,
    values: ValueKind = ValueKind.BFLOAT16,
    dtype: torch.dtype = torch.bfloat16,
    cache_dtype: torch.dtype = torch.bfloat16,
    cache_format: CacheFormat | TokenCacheFormat | None = None,
) -> BatchMemory:
    """The memory of a decoder with `context` tokens for each sequence.

    sparsity: of the linear layers, stored as bitmaps with `values`; None: dense in `dtype`, as embeddings,
    head and norms are in any case. cache_dtype, cache_format: as in `bytes_for`. Buffers: the float32 hidden
    states, projections and logits of one token.

    Raises: ValueError for a context below 1 or a sparsity outside 0 .. 1.
    """
    if sparsity is not None and not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity={sparsity} must lie between 0 and 1, e.g. 0.7")
    weights = 0
    for name, shape in expected_shapes(cfg).items():
        if name == "lm_head.weight" and cfg.tie_word_embeddings:
            continue
        entries = torch.Size(shape).numel()
        prunable = len(shape) == 2 and ".layers." in name
        if prunable and sparsity is not None:
            weights += bitmap_bytes(shape[0], shape[1], entries - round(sparsity * entries), values)
        else:
            weights += entries * dtype.itemsize
    inner = (cfg.num_attention_heads + 2 * cfg.num_key_value_heads) * cfg.head_dim
    buffers = 4 * (3 * cfg.hidden_size + inner + 2 * cfg.intermediate_size + cfg.vocab_size)
    return BatchMemory(weights, bytes_for(cfg, context, cache_format, dtype=cache_dtype), buffers)
