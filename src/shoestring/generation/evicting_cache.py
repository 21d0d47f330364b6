"""Policies that free slots of a cache after the prompt and after each step: what a ranking puts last goes.

Sources of the rankings: Zhang et al. 2023, "H2O" (importance, with a recent window); Xiao et al. 2023,
"Efficient Streaming Language Models with Attention Sinks" (the first tokens and a recent window).
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shoestring.generation.cache_forms import CacheForm
from shoestring.generation.importance import ColumnImportance
from shoestring.generation.selection import marked_slots, top_k
from shoestring.generation.slot_cache import POS, SlotCache


@runtime_checkable
class CachePolicy(Protocol):
    """What to keep of one sequence's cache, and when: `generate(…, selection=policy)` calls it."""

    @property
    def hooks(self) -> Sequence[object]:
        """Hooks for every forward pass."""
        ...

    def start(self, cache: SlotCache) -> None:
        """Prepare for a new sequence in this empty cache."""
        ...

    def after_prefill(self, cache: SlotCache) -> None:
        """The whole prompt is in the cache."""
        ...

    def after_step(self, cache: SlotCache) -> None:
        """Decoded tokens have been added to the cache."""
        ...


@runtime_checkable
class NeedsWholePrompt(Protocol):
    """A policy that may have to read the prompt in one pass."""

    whole_prompt: bool


@runtime_checkable
class EvictsWhileReading(Protocol):
    """A policy that frees slots while a prompt is still being read."""

    def after_chunk(self, cache: SlotCache) -> None:
        """A part of the prompt has been added to the cache, perhaps the last one."""
        ...


@runtime_checkable
class NeedsForm(Protocol):
    """A policy that works on one form of cache only."""

    @property
    def cache_form(self) -> CacheForm:
        """How the cache must store keys and values."""
        ...


@runtime_checkable
class TakesDrafts(Protocol):
    """A policy that also means something where a step brings several tokens, of which some are taken back
    before `after_step`. What has no such attribute cannot stand beside drafts."""

    takes_drafts: bool


@runtime_checkable
class Ranking(Protocol):
    """Scores of the slots of a layer: the highest stay."""

    @property
    def hooks(self) -> Sequence[object]:
        """Hooks that gather what it ranks by."""
        ...

    def start(self, cache: SlotCache) -> None:
        """Prepare for a new sequence."""
        ...

    def scores(self, cache: SlotCache, layer: int) -> Float[Tensor, "batch rows slots"]:
        """One row for all heads, or one per KV head where heads may keep different slots."""
        ...


class ByImportance:
    """By the attention that slots have had so far (H2O's heavy hitters).

    normalised: per row that could see the slot; without it early tokens win, as they had more chances.
    per_head: every KV head keeps slots of its own.
    """

    def __init__(self, *, normalised: bool = False, per_head: bool = True, decay: float = 1.0) -> None:
        self.normalised, self.per_head, self._sums = normalised, per_head, ColumnImportance(decay)

    @property
    def hooks(self) -> Sequence[object]:
        return (self._sums,)

    def start(self, cache: SlotCache) -> None:
        self._sums.start(cache)

    def scores(self, cache: SlotCache, layer: int) -> Float[Tensor, "batch rows slots"]:
        found = self._sums.of(cache, layer, normalised=self.normalised)
        return found if self.per_head else found.sum(1, keepdim=True)


class _WithoutHooks:
    @property
    def hooks(self) -> Sequence[object]:
        return ()

    def start(self, cache: SlotCache) -> None:
        """Nothing is kept of the sequence before."""


class ByRecency(_WithoutHooks):
    """The newest first: a window, and with `protect_first` of `Evicting` attention sinks."""

    def scores(self, cache: SlotCache, layer: int) -> Float[Tensor, "batch rows slots"]:
        return cache.layers[layer].table.read(POS).float()


class ByChance(_WithoutHooks):
    """The control: at every eviction anew, by a generator or a seed."""

    def __init__(self, seed: int | torch.Generator = 0) -> None:
        self.generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)

    def scores(self, cache: SlotCache, layer: int) -> Float[Tensor, "batch rows slots"]:
        table = cache.layers[layer].table
        drawn = torch.rand(table.batch, 1, table.longest, generator=self.generator)
        return drawn.to(table.device)


class Inverted:
    """Another ranking upside down: the control that should be the worst."""

    def __init__(self, ranking: Ranking) -> None:
        self.ranking = ranking

    @property
    def hooks(self) -> Sequence[object]:
        return self.ranking.hooks

    def start(self, cache: SlotCache) -> None:
        self.ranking.start(cache)

    def scores(self, cache: SlotCache, layer: int) -> Float[Tensor, "batch rows slots"]:
        return -self.ranking.scores(cache, layer)


class Evicting:
    """A policy: in every layer only the slots that a ranking puts first stay; the others are freed.

    keep: slots to keep, one number for all layers or one per layer; a float is a share, in (0, 1], of the
    tokens of the prompt. protect_first, protect_last: positions at either end that always stay and count
    towards `keep`. slack: after a step, nothing is freed until a layer holds so many slots more than it is
    to keep. while_reading: also free slots after each part of a prompt, which then never lies in the cache
    as a whole; `keep` must be counts, as nobody knows yet how long the prompt is.

    Beside drafts, what a rejected token gave to a ranking by attention stays in it.

    Raises: ValueError for shares, counts or protected numbers out of range, or shares with while_reading; on
    `after_prefill`, for another number of layers than the cache has.
    """

    takes_drafts = True

    def __init__(
        self,
        ranking: Ranking,
        keep: int | float | Sequence[int | float],
        *,
        protect_first: int = 0,
        protect_last: int = 0,
        slack: int = 0,
        while_reading: bool = False,
    ) -> None:
        self._keeps: tuple[int | float, ...] = (keep,) if isinstance(keep, int | float) else tuple(keep)
        for layer, amount in enumerate(self._keeps):
            if isinstance(amount, float) and not 0 < amount <= 1:
                raise ValueError(f"keep={amount} of layer {layer} is a share and must be in (0, 1].")
            if amount < 1 and not isinstance(amount, float):
                raise ValueError(f"keep={amount} of layer {layer} is a count and must be 1 or more.")
        if min(protect_first, protect_last, slack) < 0:
            raise ValueError(
                f"protect_first={protect_first}, protect_last={protect_last}, slack={slack}: all must be 0 "
                "or more."
            )
        if while_reading and any(isinstance(amount, float) for amount in self._keeps):
            raise ValueError(
                f"keep={keep} is a share of a prompt whose length is not known while it is read; give counts."
            )
        self.while_reading = while_reading
        self.ranking, self.one_for_all = ranking, not isinstance(keep, Sequence)
        self.protect_first, self.protect_last, self.slack = protect_first, protect_last, slack
        self.counts: tuple[int, ...] | None = None

    @property
    def hooks(self) -> Sequence[object]:
        return self.ranking.hooks

    def start(self, cache: SlotCache) -> None:
        self.counts = None
        self.ranking.start(cache)

    def after_chunk(self, cache: SlotCache) -> None:
        """Evict, if that is asked for while the prompt is read."""
        if self.while_reading:
            self._evict(cache, self._counts(cache), 0)

    def after_prefill(self, cache: SlotCache) -> None:
        self.counts = self._counts(cache)
        self._evict(cache, self.counts, 0)

    def after_step(self, cache: SlotCache) -> None:
        if self.counts is None:
            raise ValueError("after_step came before after_prefill; call that once the prompt is read.")
        self._evict(cache, self.counts, self.slack)

    def _counts(self, cache: SlotCache) -> tuple[int, ...]:
        """Slots to keep in each layer."""
        keeps = self._keeps * cache.n_layers if self.one_for_all else self._keeps
        if len(keeps) != cache.n_layers:
            raise ValueError(f"keep has {len(keeps)} numbers for a cache of {cache.n_layers} layers.")
        prompt = int(cache.next_pos.max())
        return tuple(
            max(1, round(amount * prompt)) if isinstance(amount, float) else int(amount) for amount in keeps
        )

    def _evict(self, cache: SlotCache, counts: Sequence[int], slack: int) -> None:
        for layer, count in enumerate(counts):
            table = cache.layers[layer].table
            if table.longest <= count + slack:
                continue
            scores = self.ranking.scores(cache, layer)
            safe = protected_slots(cache, layer, self.protect_first, self.protect_last)
            name = f"scores of layer {layer}"
            kept = top_k(scores, count, protected=safe, valid=table.valid(), what=name)
            slots = marked_slots(kept)
            cache.evict(layer, slots[:, 0] if slots.shape[1] == 1 else slots)


def protected_slots(cache: SlotCache, layer: int, first: int, last: int) -> Bool[Tensor, "batch rows slots"]:
    """The slots of a layer that hold one of the `first` or of the `last` positions of their sequence."""
    pos = cache.layers[layer].table.read(POS)
    return (pos < first) | (pos >= cache.next_pos[:, None, None] - last)
