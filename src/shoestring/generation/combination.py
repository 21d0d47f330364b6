"""Which form of cache, selection and draft go together, and the cache that they share.

Every pair either works or is refused here, before anything runs, with what to do instead.
"""

from typing import Any

from torch import nn

from shoestring.generation.cache_forms import CacheForm, DenseFormat
from shoestring.generation.decoder_runner import decoder_cache
from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.evicting_cache import CachePolicy, NeedsForm, TakesDrafts
from shoestring.generation.mpcache import MPCache
from shoestring.generation.spatten.policy import SpAtten
from shoestring.generation.speculation.draft import Speculation
from shoestring.generation.speculation.glide import Glide
from shoestring.models.decoder import Decoder
from shoestring.models.layer_layout import LayerKind
from shoestring.numbers.tier_format import TierFormat

_ALONE: dict[type, str] = {
    MPCache: "it chooses anew what each token reads, and a step of several tokens reads everything",
    SpAtten: "it prunes by the attention of every single token, and takes a step of several for a prompt",
}
"""Why these do not stand beside drafts."""


def combined_cache(
    model: nn.Module,
    cache: Any = None,
    selection: CachePolicy | None = None,
    speculation: Speculation | None = None,
    *,
    capacity: int = 0,
) -> Any:
    """What to generate with: an empty cache in a form, or `cache` itself where it is no form; None where
    the runner is to make the model's own.

    cache: a `CacheForm`, an empty cache, or None for the form that the selection needs, else the model's own.
    capacity: tokens that a new cache has room for; with a selection, room comes as it is needed.

    Raises: ValueError for what does not go together, naming both and what to do instead.
    """
    form = cache if isinstance(cache, CacheForm) else None
    if form is not None and not isinstance(model, Decoder):
        raise ValueError(
            f"cache={form} is a form for a Decoder, not for a {type(model).__name__}; load the model as one, "
            "or pass a TransformersCache."
        )
    if cache is None and isinstance(selection, NeedsForm):
        form = selection.cache_form
    if selection is not None:
        _check_selection(model, form, selection)
    elif isinstance(form, TierFormat):
        raise ValueError(
            f"cache={form} compresses what a selection sorts, and there is none; add selection=ZipVL() "
            "(--select zipvl), or use a TokenCacheFormat (--cache tokens)."
        )
    if speculation is not None:
        _check_speculation(model, cache, selection, speculation)
    if not isinstance(model, Decoder) or (cache is not None and form is None):
        return cache
    if selection is not None:
        # Room for the whole text is what a selection is to save.
        return decoder_cache(model, form)
    return None if form is None else decoder_cache(model, form, capacity=capacity)


def _check_selection(model: nn.Module, form: CacheForm | None, selection: CachePolicy) -> None:
    name = type(selection).__name__
    if isinstance(model, Decoder) and model.cfg.is_hybrid:
        raise ValueError(
            f"{name} selects among the tokens that every layer caches, and this model has layers without "
            "attention; generate without a selection: those layers cost no more for a longer text."
        )
    if form is None:
        return
    if isinstance(selection, NeedsForm):
        needed = selection.cache_form
        alike = form == needed if isinstance(needed, TierFormat) else type(form) is type(needed)
        if not alike:
            raise ValueError(
                f"cache={form} does not go with {name}, which stores as {needed}; leave cache out, and it is "
                "made so."
            )
    elif isinstance(form, TierFormat):
        raise ValueError(
            f"cache={form} does not go with {name}, which never says what to compress; use ZipVL, or a "
            "TokenCacheFormat with this selection."
        )


def _check_speculation(
    model: nn.Module, cache: Any, selection: CachePolicy | None, speculation: Speculation
) -> None:
    draft = type(speculation).__name__
    if isinstance(model, Decoder) and LayerKind.MAMBA in model.cfg.layout:
        raise ValueError(
            f"{draft} needs tokens taken back, and this model keeps states that mix them; generate without "
            "speculation."
        )
    if selection is not None and not isinstance(selection, TakesDrafts):
        name = type(selection).__name__
        reason = _ALONE.get(type(selection), "it does not say that it takes drafts")
        raise ValueError(
            f"{name} does not go with {draft}: {reason}; leave one of them out, or select with Evicting "
            "(--select window or h2o), StartRecentImportant or ZipVL."
        )
    if not isinstance(speculation, Glide):
        return
    if speculation.shape is not None and selection is not None and selection.hooks:
        raise ValueError(
            f"{type(selection).__name__} does not go with a Glide of trees, which takes the place of the "
            "attention that it looks at; draft chains (shape=None)."
        )
    # A cache in the model's own form is looked at when there is one.
    exact = cache is None or isinstance(cache, DenseFormat | DenseCache)
    if not speculation.allow_lossy_draft and (selection is not None or not exact):
        what = f"cache={cache}" if selection is None else type(selection).__name__
        raise ValueError(
            f"{what} does not go with Glide, whose draft reads the exact keys and values of the last layer; "
            "use Glide(…, allow_lossy_draft=True) for worse drafts of the same text, PromptLookup(), or a "
            "dense cache without a selection."
        )
