"""What may become of the KV cache, beside the weights, when a budget includes it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from shoestring.compression.kv_quantize import CacheRecipe, KVQuantize, KVQuantizeTokens
from shoestring.compression.sensitivity import logits_of
from shoestring.generation.cache_bytes import bytes_for
from shoestring.generation.decoder_runner import decoder_cache
from shoestring.generation.runner import cache_argument
from shoestring.models.decoder import Decoder
from shoestring.yardstick.language_quality import without_cache

CACHE_RECIPES: tuple[CacheRecipe, ...] = (
    KVQuantizeTokens(8, 8),
    KVQuantizeTokens(8, 4),
    KVQuantize(4, 32, tail_tokens=32),
    KVQuantize(2, 32, tail_tokens=32),
)
"""Token by token where that costs next to nothing: those are what the compiled step reads. Keys in 4 bits and
less need scales along the tokens."""

CHUNK_TOKENS = 32
"""Tokens fed at a time, so that all but the nearest are read back from the quantised cache."""


@dataclass(frozen=True)
class CacheOption:
    """A cache: its recipe (None: full precision), its bytes, the divergence it adds (nats a token)."""

    recipe: CacheRecipe | None
    nbytes: int
    loss: float


def cache_options(
    model: nn.Module,
    context: int,
    windows: Int[Tensor, "windows tokens"],
    autocast: torch.dtype | None,
) -> list[CacheOption]:
    """The cache in full precision and by `CACHE_RECIPES`, each with what it costs on `windows`.

    Raises: as `check_context`.
    """
    check_context(model, context)
    config = model.config
    dtype = next(model.parameters()).dtype
    options = [CacheOption(None, bytes_for(config, context, dtype=dtype), 0.0)]
    for recipe in CACHE_RECIPES:
        if recipe.why_not_model(model) is None:
            nbytes = bytes_for(config, context, recipe.form, dtype=dtype)
            loss = cached_divergence(model, model, recipe, windows, autocast)
            options.append(CacheOption(recipe, nbytes, loss))
    return options


def check_context(model: nn.Module, context: int) -> None:
    """Raises: ValueError for a context below 1 or beyond what the model was made for."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if context < 1 or (limit is not None and context > limit):
        longest = "" if limit is None else f" to {limit}, the longest that this model can see"
        raise ValueError(f"a context of {context} tokens is outside 1{longest or ' and more'}.")


def cached_divergence(
    model: nn.Module,
    original: nn.Module,
    recipe: CacheRecipe,
    windows: Int[Tensor, "windows tokens"],
    autocast: torch.dtype | None,
) -> float:
    """Mean divergence from `original`, nats a token, when `model` reads old tokens from the cache."""
    total = 0.0
    with torch.inference_mode(), torch.autocast(windows.device.type, autocast, enabled=autocast is not None):
        for window in windows:
            feed = _fed(model, recipe)
            log_p = logits_of(original(window[None], **without_cache(original)))[0].float().log_softmax(-1)
            for start in range(0, len(window), CHUNK_TOKENS):
                ids = window[None, start : start + CHUNK_TOKENS]
                q = feed(ids)[0].float().log_softmax(-1)
                p = log_p[start : start + CHUNK_TOKENS]
                total += (p.exp() * (p - q)).sum().item()
    return total / windows.numel()


def _fed(model: nn.Module, recipe: CacheRecipe) -> Callable[[Tensor], Tensor]:
    """Feeds ids to the model after what came before, through a new cache; their logits."""
    if isinstance(model, Decoder):
        own = decoder_cache(model, recipe.form)
        return lambda ids: logits_of(model(ids, cache=own))
    from shoestring.generation.transformers_cache import TransformersCache

    options = {cache_argument(model): TransformersCache(recipe.form, config=model.config)}
    return lambda ids: logits_of(model(ids, use_cache=True, **options))
