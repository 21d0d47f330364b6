"""Our own decoder as a runner, module by module, and the caches that it makes."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoestring.generation.cache_forms import CacheForm, DenseFormat, empty_cache
from shoestring.generation.evicting_cache import CachePolicy, EvictsWhileReading
from shoestring.generation.hybrid_cache import HybridCache
from shoestring.generation.slot_cache import SlotCache
from shoestring.layers.state import State
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_step import Want
from shoestring.models.hooks import Context
from shoestring.models.layer_layout import LayerKind
from shoestring.models.protocols import KVCache


class DecoderRunner:
    """Our own decoder, through a cache of ours.

    cache: an empty `KVCache`; by default a new one for one sequence in the model's `kv_cache_format`. hooks,
    ctx: passed on to every forward pass. selection: what is kept of the cache, and read of it.

    Raises: TypeError for a cache of another kind, or one that a selection cannot work on.
    """

    def __init__(
        self,
        model: Decoder,
        cache: Any = None,
        capacity: int = 0,
        *,
        hooks: Sequence[object] = (),
        ctx: Context | None = None,
        selection: CachePolicy | None = None,
    ) -> None:
        self.model, self.device = model, next(model.parameters()).device
        self.vocab_size: int = model.cfg.vocab_size
        self.context: int | None = model.cfg.max_position_embeddings
        self.end_tokens = end_tokens(model.generation_config, model.config, model.cfg)
        if cache is not None and not isinstance(cache, KVCache):
            raise TypeError(
                f"a {type(cache).__name__} is no cache of a Decoder; pass a DenseCache, TokenCache, "
                "QuantCache or HybridCache."
            )
        self.cache: KVCache = decoder_cache(model, capacity=capacity) if cache is None else cache
        self.hooks, self.ctx, self.selection = tuple(hooks), ctx, selection
        self._prompt_read = False
        if selection is not None:
            if not isinstance(self.cache, SlotCache):
                raise TypeError(f"a selection works on a SlotCache, not on a {type(self.cache).__name__}.")
            selection.start(self.cache)
            self.hooks += tuple(selection.hooks)

    def feed(self, ids: Int[Tensor, "batch n"]) -> Float[Tensor, "batch vocab"]:
        """Append tokens to every sequence of the cache; the logits of the tokens that follow."""
        out = self.model(ids, cache=self.cache, ctx=self.ctx, hooks=self.hooks, want=Want(logits="last"))
        self.after_step()
        return out.logits[:, -1]

    def after_step(self) -> None:
        """Let the selection work on the tokens that have come to stay; `feed` calls it."""
        if self.selection is None:
            return
        assert isinstance(self.cache, SlotCache)
        if self._prompt_read:
            self.selection.after_step(self.cache)
        elif isinstance(self.selection, EvictsWhileReading):
            self.selection.after_chunk(self.cache)

    def prompt_is_read(self) -> None:
        """Say that what is fed from now on is decoded tokens."""
        self._prompt_read = True
        if self.selection is not None:
            assert isinstance(self.cache, SlotCache)
            self.selection.after_prefill(self.cache)

    @property
    def cache_bytes(self) -> int:
        """Bytes that the cache holds now."""
        return self.cache.nbytes()


def decoder_cache(
    model: Decoder,
    form: CacheForm | None = None,
    *,
    batch: int = 1,
    capacity: int = 0,
    dtype: torch.dtype | None = None,
) -> SlotCache:
    """An empty cache for a decoder, in `form` or else in its `kv_cache_format`; plain where it has none.

    A hybrid gets a `HybridCache`: keys and values of its layers with attention only, and states.
    dtype: of keys and values that are not quantised; by default the model's.

    Raises: ValueError where the format does not fit the model's heads.
    """
    cfg, form = model.cfg, form or model.kv_cache_format
    parameter = next(model.parameters())
    attention = len(cfg.layers_of(LayerKind.ATTENTION))
    shape = attention, batch, cfg.num_key_value_heads, cfg.head_dim
    options: dict[str, Any] = {
        "dtype": dtype or parameter.dtype,
        "device": parameter.device,
        "capacity": capacity,
    }
    keys: SlotCache | None = None
    if attention:
        keys = empty_cache(DenseFormat() if form is None else form, *shape, **options)
    if keys is not None and not cfg.is_hybrid:
        return keys
    return HybridCache(keys, _first_states(model, batch))


def _first_states(model: Decoder, batch: int) -> dict[int, State]:
    """Of every layer without attention, the state before the first token; {} for one that mixes nothing."""
    states: dict[int, State] = {}
    for index, (kind, layer) in enumerate(zip(model.cfg.layout, model.model.layers, strict=True)):
        if kind is LayerKind.MAMBA:
            mixer: Any = layer.mixer
            states[index] = mixer.init_state(batch)
        elif kind is not LayerKind.ATTENTION:
            states[index] = {}
    return states


def end_tokens(*configs: Any) -> frozenset[int]:
    """The end tokens that the first of these configurations names."""
    for config in configs:
        ends = getattr(config, "eos_token_id", None)
        if ends is not None:
            return frozenset([ends] if isinstance(ends, int) else ends)
    return frozenset()
