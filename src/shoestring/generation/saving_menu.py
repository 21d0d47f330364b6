"""The savings of `generate` by name, as the command line and the measured grid of combinations have them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from shoestring.generation.cache_forms import CacheForm, DenseFormat
from shoestring.generation.evicting_cache import ByImportance, ByRecency, CachePolicy, Evicting
from shoestring.generation.important_tokens import TopMass
from shoestring.generation.mpcache import KeepShare, MPCache
from shoestring.generation.plane_cache import PlaneFormat
from shoestring.generation.spatten.policy import SpAtten
from shoestring.generation.spatten.schedule import linear_schedule
from shoestring.generation.spatten.start_recent_important import StartRecentImportant
from shoestring.generation.speculation.draft import Speculation
from shoestring.generation.speculation.glide import Glide
from shoestring.generation.speculation.prompt_lookup import PromptLookup
from shoestring.generation.zipvl import ZipVL
from shoestring.generation.zipvl_options import ZipVLOptions
from shoestring.models.built_in_drafts import fitting_draft
from shoestring.models.decoder import Decoder
from shoestring.models.glide_checkpoint import load_glide
from shoestring.numbers.block_format import BlockFormat
from shoestring.numbers.cache_format import CacheFormat
from shoestring.numbers.tier_format import TierFormat
from shoestring.numbers.token_cache_format import TokenCacheFormat

SINKS = 4
"""First tokens that are never dropped (Xiao et al. 2023, "Efficient Streaming Language Models with Attention
Sinks", section 3.1)."""
SLACK = 32
"""Slots more than asked for before a step frees any: moving what stays costs a copy of the cache."""


@dataclass(frozen=True)
class Sizes:
    """What shares are taken of: layers of the model, tokens of the prompt, and of prompt and output."""

    layers: int
    prompt: int
    total: int


@dataclass(frozen=True)
class Selected:
    """A selection on the menu. keep: what it keeps unless told. keeps: what that is a share of."""

    make: Callable[[float, Sizes], CachePolicy]
    keep: float
    keeps: str
    about: str
    counts: bool = True
    """Whether it may be told a number of tokens instead."""


def _window(keep: float, sizes: Sizes) -> CachePolicy:
    count = _tokens(keep, sizes)
    return Evicting(ByRecency(), count, protect_first=min(SINKS, count - 1), slack=SLACK, while_reading=True)


def _heavy_hitters(keep: float, sizes: Sizes) -> CachePolicy:
    count = _tokens(keep, sizes)
    return Evicting(ByImportance(), count, protect_last=count // 2, slack=SLACK, while_reading=True)


def _start_recent_important(keep: float, sizes: Sizes) -> CachePolicy:
    count = _tokens(keep, sizes)
    start = min(SINKS, count - 1)
    return StartRecentImportant(start, count - start - (count - start) // 2, (count - start) // 2)


def _clusters(keep: float, sizes: Sizes) -> CachePolicy:
    return MPCache(KeepShare(keep))


def _cascade(keep: float, sizes: Sizes) -> CachePolicy:
    return SpAtten(linear_schedule(sizes.layers, sizes.total, keep))


def _important_in_more_bits(keep: float, sizes: Sizes) -> CachePolicy:
    return ZipVL(ZipVLOptions(TopMass(keep)))


SELECTIONS: Mapping[str, Selected] = {
    "window": Selected(
        _window, 0.25, "tokens of the prompt", "the first four tokens and the newest, also while reading"
    ),
    "h2o": Selected(
        _heavy_hitters, 0.25, "tokens of the prompt",
        "half the newest tokens, half those with the most attention, also while reading",
    ),
    "start-recent-important": Selected(
        _start_recent_important, 0.25, "tokens of the prompt",
        "the first, the newest, and those with the highest scores in this step",
    ),
    "mpcache": Selected(
        _clusters, 0.4, "tokens of the prompt",
        "drops once after the prompt, then reads a few clusters at every step", counts=False,
    ),
    "spatten": Selected(
        _cascade, 0.3, "tokens in the last layer",
        "each layer reads fewer tokens, keys in few bits first; saves traffic", counts=False,
    ),
    "zipvl": Selected(
        _important_in_more_bits, 0.975, "attention that the important tokens hold",
        "important tokens of the prompt in 4 bits, others in 2", counts=False,
    ),
}  # fmt: skip
CACHES: Mapping[str, tuple[CacheForm, str]] = {
    "dense": (DenseFormat(), "in full"),
    "tokens": (TokenCacheFormat(8, 8), "every token in 16, 8, 4 or 2 bits; fast"),
    "groups": (CacheFormat(4), "old tokens in 8, 4 or 2 bits with shared scales, the last 128 in full"),
    "paged": (BlockFormat(), "blocks of 16 tokens, in full or in 8, 4 or 2 bits"),
    "planes": (PlaneFormat(), "keys in 6 + 4 bits, values in 8"),
    "tiers": (TierFormat(), "in the bits that zipvl gives each token"),
}


def named_cache(name: str | None, bits: tuple[int, int] | None = None) -> CacheForm | None:
    """The form of a cache on the menu; None leaves it to the selection and the model. bits: of keys and of
    values; alone they mean "tokens".

    Raises: ValueError for another name, or bits that this form does not come in.
    """
    if name is None:
        return None if bits is None else TokenCacheFormat(*bits)
    if name not in CACHES:
        raise ValueError(f"cache={name!r} is not one of {', '.join(CACHES)}.")
    form = CACHES[name][0]
    if bits is None:
        return form
    if isinstance(form, TokenCacheFormat):
        return TokenCacheFormat(*bits)
    if isinstance(form, BlockFormat):
        return replace(form, tokens=TokenCacheFormat(*bits))
    if isinstance(form, CacheFormat):
        if bits[0] != bits[1]:
            raise ValueError(
                f"cache='groups' has one width for keys and values, not {bits[0]} and {bits[1]}; give one, "
                "or use cache='tokens'."
            )
        return replace(form, bits=bits[0])
    raise ValueError(f"cache={name!r} has widths of its own; leave the bits out, or use cache='tokens'.")


def named_selection(name: str | None, keep: float | None, sizes: Sizes) -> CachePolicy | None:
    """A selection on the menu. keep: a share up to 1, or a number of tokens above 1; its own default if None.

    Raises: ValueError for another name, a share or number out of range, or one without a selection.
    """
    if name is None:
        if keep is not None:
            raise ValueError(f"keep={keep:g} of what? Choose a selection: {', '.join(SELECTIONS)}.")
        return None
    if name not in SELECTIONS:
        raise ValueError(f"selection={name!r} is not one of {', '.join(SELECTIONS)}.")
    selected = SELECTIONS[name]
    amount = selected.keep if keep is None else keep
    if not amount > 0 or (amount > 1 and amount != int(amount)):
        raise ValueError(f"keep={amount:g} must be a share in (0, 1] or a whole number of tokens above 1.")
    if amount > 1 and not selected.counts:
        raise ValueError(
            f"keep={amount:g}: {name} takes the share of {selected.keeps}, up to 1; the default is "
            f"{selected.keep:g}."
        )
    return selected.make(amount, sizes)


def named_speculation(name: str | None, model: Decoder) -> Speculation | None:
    """ "lookup"; "longspec", the trained draft in this package that fits the model; or the folder of one.

    Raises: ValueError for what is none of these; as `fitting_draft` and `load_glide`.
    """
    if name is None:
        return None
    if name == "lookup":
        return PromptLookup()
    if name == "longspec":
        return Glide(fitting_draft(model))
    if not (Path(name) / "draft.json").is_file():
        raise ValueError(
            f"speculation={name!r} is not 'lookup', 'longspec' or a folder with a trained draft."
        )
    return Glide(load_glide(name, model))


def _tokens(keep: float, sizes: Sizes) -> int:
    """At least two: one old and one new."""
    return max(2, round(keep * sizes.prompt) if keep <= 1 else int(keep))
