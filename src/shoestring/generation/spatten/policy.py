"""SpAtten as a selection of `generate`: hooks that prune tokens, heads and values while a decoder runs.

Within a layer: keys (high bits, then low bits where asked for), probabilities, values of the likeliest slots.
Then every token's and every head's score grows, and the next layer gets fewer of both. What one layer drops
no later layer of the step sees.

Source: Wang et al. 2021, "SpAtten: Efficient Sparse Attention Architecture with Cascade Token and Head
Pruning". The protected positions and `normalised` are our own: under a causal mask early tokens have had
more rows to collect from, and the newest would go first. `normalised` ranks by the sum over the number of
rows from a token's own on; the sums themselves stay as they are.
"""

import copy
import enum
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shoestring.generation.plane_cache import PlaneCache, PlaneFormat
from shoestring.generation.selection import marked_slots, top_k
from shoestring.generation.slot_cache import POS, SlotCache
from shoestring.generation.spatten.progressive import ProgressiveAttention, progressive_attention
from shoestring.generation.spatten.schedule import KeepSchedule
from shoestring.generation.spatten.token_scores import TokenScores
from shoestring.layers.attention import AttendOut, attend
from shoestring.layers.attention_masks import Causal, KVView
from shoestring.layers.column_sums import column_sums
from shoestring.models.decoder import Decoder
from shoestring.models.hooks import AttendCall, AttnPlan, Context, Drop, Keep, Phase
from shoestring.models.protocols import HookConflict


class Pruning(enum.Enum):
    """What becomes of a pruned token's keys and values."""

    SELECT = "select"
    """Not read in this step; each step chooses anew. Saves traffic only; the paper's rule."""
    EVICT = "evict"
    """Freed in the layers that it was pruned from, for good."""


class HeadUnit(enum.Enum):
    """What head pruning keeps or drops as one."""

    QUERY = "query"
    """Single query heads: keys and values are saved only where all heads of a KV head are gone."""
    KV_GROUP = "group"
    """All query heads of a KV head, by their mean score."""


@runtime_checkable
class Rank(Protocol):
    """Turns scores (batch, positions) into another ranking of the same shape; the scores are not changed."""

    def __call__(self, scores: Tensor) -> Tensor: ...


class SpAtten:
    """A `CachePolicy` that is its own hook. Use a `PlaneCache` (see `cache`) with it.

    tokens, heads: how many enter each layer while decoding (None: all); heads in the prompt too.
    prompt_tokens: tokens for the prompt, which then loses them whole, their feed-forward work too; read it in
    one pass and ask for the last logits only. attention: progressive quantisation and local value pruning of
    decoded tokens. protect_first, protect_last: positions at either end that always stay. gamma, normalised:
    see `TokenScores`. rank: turns the scores into another ranking, for controls. `live` and `live_heads` hold
    the last layer's survivors.

    Raises: ValueError for negative protected numbers, a schedule of another number of layers, a prompt that
    comes in parts although its tokens are to be dropped, or whose logits are all asked for; TypeError for
    another cache; FloatingPointError for NaN scores.
    """

    def __init__(
        self,
        tokens: KeepSchedule | None = None,
        heads: KeepSchedule | None = None,
        *,
        prompt_tokens: KeepSchedule | None = None,
        attention: ProgressiveAttention = ProgressiveAttention(),  # noqa: B008  (frozen)
        pruning: Pruning = Pruning.SELECT,
        head_unit: HeadUnit = HeadUnit.QUERY,
        protect_first: int = 1,
        protect_last: int = 16,
        gamma: float = 1.0,
        normalised: bool = False,
        rank: Rank | None = None,
    ) -> None:
        if protect_first < 0 or protect_last < 0:
            raise ValueError(
                f"protect_first={protect_first} and protect_last={protect_last} must be 0 or more."
            )
        self.tokens, self.heads, self.prompt_tokens = tokens, heads, prompt_tokens
        self.attention, self.pruning, self.head_unit = attention, pruning, head_unit
        self.protect_first, self.protect_last, self.normalised, self.rank = (
            protect_first, protect_last, normalised, rank,
        )  # fmt: skip
        self.gamma = gamma
        self.scores = TokenScores(1, gamma)
        self.head_scores: Float[Tensor, "batch heads"] | None = None
        self.live: Bool[Tensor, "batch positions"] | None = None
        self.live_heads: Bool[Tensor, "batch heads"] | None = None

    @staticmethod
    def cache(
        model: Decoder, form: PlaneFormat | None = None, *, batch: int = 1, capacity: int = 0
    ) -> PlaneCache:
        """An empty cache for a decoder, by default with keys in 6 + 4 bits and values in 8."""
        cfg, parameter = model.cfg, next(model.parameters())
        return PlaneCache(
            cfg.num_hidden_layers, batch, cfg.num_key_value_heads, cfg.head_dim, form or PlaneFormat(),
            dtype=parameter.dtype, device=parameter.device, capacity=capacity,
        )  # fmt: skip

    @property
    def hooks(self) -> Sequence[object]:
        return (self,)

    @property
    def cache_form(self) -> PlaneFormat:
        """Bit planes; any `PlaneFormat` does."""
        return PlaneFormat()

    @property
    def whole_prompt(self) -> bool:
        """Whether the prompt must come in one pass: where it loses tokens."""
        return self.prompt_tokens is not None

    def start(self, cache: SlotCache) -> None:
        if not isinstance(cache, PlaneCache):
            raise TypeError(
                f"SpAtten reads keys and values in parts, which a {type(cache).__name__} does not give; pass "
                "cache=SpAtten.cache(model)."
            )
        for schedule in (self.tokens, self.heads, self.prompt_tokens):
            if schedule is not None:
                schedule.check_layers(cache.n_layers)
        self.scores = TokenScores(cache.batch, self.gamma, cache.next_pos.device)
        self.head_scores = self.live = self.live_heads = None

    def after_prefill(self, cache: SlotCache) -> None:
        """Nothing: pruning happens inside the passes."""

    def after_step(self, cache: SlotCache) -> None:
        """Nothing: pruning happens inside the passes."""

    def fork(self) -> "SpAtten":
        """A copy that goes on by itself from here, beside a clone of the cache."""
        other = copy.copy(self)
        other.scores = self.scores.clone()
        other.head_scores = None if self.head_scores is None else self.head_scores.clone()
        return other

    def pre_layer(self, layer: int, x: Tensor, pos: Tensor, ctx: Context) -> Keep | Drop:
        """Begin a pass, choose the live tokens of a layer, and drop those of the prompt that are not."""
        if layer == 0:
            self._begin(pos, ctx)
        decoding = ctx.phase is Phase.DECODE
        schedule = self.tokens if decoding else self.prompt_tokens
        if schedule is None or (layer and schedule[layer] == schedule[layer - 1]):
            return Keep()
        self._cut(layer, schedule[layer], pos, ctx)
        if decoding:
            return Keep()
        assert self.live is not None
        marked = self.live.gather(1, pos.clamp(min=0)) & (pos >= 0)
        return Keep() if bool((marked == (pos >= 0)).all()) else Drop(marked_slots(marked))

    def attn_plan(self, layer: int, q: Tensor, pos: Tensor, ctx: Context) -> AttnPlan:
        """The prompt's attention with statistics, or that of decoded tokens in two passes."""
        if self.live_heads is None:
            self.live_heads = torch.ones(q.shape[:2], dtype=torch.bool, device=q.device)
        if (
            self.heads is not None
            and self.head_scores is not None
            and (layer == 0 or self.heads[layer] < self.heads[layer - 1])
        ):
            self._cut_heads(layer, self.heads[layer], ctx)
        return AttnPlan(attend=self._decode if ctx.phase is Phase.DECODE else self._prompt)

    def post_attn(self, layer: int, out: Tensor, stats: AttendOut, ctx: Context) -> Tensor:
        """Nothing of a pruned head is left; the scores of the others grow; freed is what was pruned."""
        assert self.live_heads is not None
        out = out * self.live_heads[:, :, None, None].to(out.dtype)
        given = out.abs().sum((2, 3), dtype=torch.float64)
        self.head_scores = given if self.head_scores is None else self.head_scores + given
        if self.pruning is Pruning.EVICT and ctx.phase is Phase.DECODE and isinstance(ctx.cache, SlotCache):
            kept = self._live_slots(layer, ctx.cache)
            if kept is not None:
                ctx.cache.evict(layer, kept)
        return out

    def _begin(self, pos: Tensor, ctx: Context) -> None:
        cache = ctx.cache
        if not isinstance(cache, PlaneCache):
            self.start(cache)  # type: ignore[arg-type]  # says what is wrong
        if ctx.phase is Phase.PREFILL and self.prompt_tokens is not None:
            if int(cache.next_pos.max()) > 0:  # type: ignore[union-attr]
                raise ValueError(
                    "tokens of a prompt are dropped by its scores as a whole; read it in one pass "
                    "(prefill_chunk=the length of the prompt)."
                )
            if ctx.all_logits:
                raise ValueError("dropped tokens have no logits; use decode mode, or Want(logits='last').")
        self.next_pos = torch.maximum(cache.next_pos, pos.amax(1) + 1)  # type: ignore[union-attr]
        positions = int(self.next_pos.max())
        self.scores.grow(positions)
        self.scores.forget(pos)
        places = torch.arange(self.scores.sums.shape[1], device=pos.device)
        self.live = places < self.next_pos[:, None]
        self.live_heads = None

    def _cut(self, layer: int, count: int, pos: Tensor, ctx: Context) -> None:
        assert self.live is not None
        if self.pruning is Pruning.EVICT and ctx.phase is Phase.DECODE:
            self.live = self.live & self._held(layer, pos, ctx)
        places = torch.arange(self.live.shape[1], device=pos.device)
        safe = (places < self.protect_first) | (places >= self.next_pos[:, None] - self.protect_last)
        if pos.shape[1] == 1:
            safe = safe | (places == pos)  # the token that is being decoded
        ranking = self.scores.ranking(self.next_pos, normalised=self.normalised)
        if self.rank is not None:
            ranking = self.rank(ranking)
        self.live = self.scores.cut(self.live, count, safe, ranking, layer)

    def _held(self, layer: int, pos: Tensor, ctx: Context) -> Bool[Tensor, "batch positions"]:
        """Positions that a layer's cache still has, and those of the tokens that are about to come."""
        assert self.live is not None
        assert isinstance(ctx.cache, SlotCache)
        table = ctx.cache.layers[layer].table
        held, valid = table.read(POS)[:, 0].long(), table.valid()
        present = torch.ones_like(held, dtype=torch.bool) if valid is None else valid[:, 0]
        marked = torch.zeros_like(self.live, dtype=torch.long)
        marked.scatter_add_(1, held.masked_fill(~present, 0), present.long())
        return marked.scatter_add(1, pos.clamp(min=0), (pos >= 0).long()) > 0

    def _cut_heads(self, layer: int, count: int, ctx: Context) -> None:
        assert self.live_heads is not None
        assert self.head_scores is not None
        assert ctx.cache is not None
        scores, live, what = self.head_scores, self.live_heads, f"head scores at layer {layer}"
        if self.head_unit is HeadUnit.QUERY:
            self.live_heads = top_k(scores, count, valid=live, what=what)
            return
        groups = ctx.cache.n_kv_heads  # type: ignore[attr-defined]
        size = scores.shape[1] // groups
        means, together = scores.unflatten(1, (groups, size)).mean(2), live.unflatten(1, (groups, size))
        kept = top_k(means, max(1, count // size), valid=together.any(2), what=what)
        self.live_heads = kept.repeat_interleave(size, 1)

    def _prompt(self, call: AttendCall) -> AttendOut:
        """The whole attention, with the column sums of the heads that live."""
        view, mask = call.read()
        assert self.live_heads is not None
        if isinstance(mask, Causal) and mask.newest and self._is_plain(call, view):
            out = attend(call.q, view, mask, call.scale, call.window)
            # Sample by sample: so many scores stay in the processor's cache.
            sums = [
                column_sums(q[None], k[None], at[None], pos, call.scale, call.window)[0].sum(1)
                for q, k, at, pos in zip(call.q, view.k, call.pos, view.pos, strict=True)
            ]
            self._add(torch.cat(sums), view.pos, view.valid)
            return out
        need = frozenset({"colsum"})
        group = call.q.shape[1] // view.k.shape[1]
        if not bool(self.live_heads.all()):
            # A key head for every query head: column sums come apart by query head.
            def each(t: Tensor) -> Tensor:
                return t if t.shape[1] == 1 else t.repeat_interleave(group, 1)

            valid = None if view.valid is None else each(view.valid)
            view = KVView(each(view.k), each(view.v), each(view.pos), valid)
            live = self.live_heads
        else:
            live = self.live_heads.new_ones(view.k.shape[:2])
        out = attend(call.q, view, mask, call.scale, call.window, call.policy, call.need | need)
        assert out.colsum is not None
        self._add((out.colsum * live[:, :, None].to(out.colsum.dtype)).sum(1), view.pos, view.valid)
        return out

    def _is_plain(self, call: AttendCall, view: KVView) -> bool:
        """Whether all heads of all tokens attend as always, and nothing else is asked of it."""
        assert self.live_heads is not None
        return (
            view.valid is None
            and view.pos.shape[1] == 1
            and call.policy is None
            and not call.need
            and bool(self.live_heads.all())
        )

    def _decode(self, call: AttendCall) -> AttendOut:
        """Few new tokens against the live slots, in two passes."""
        cache = call.cache
        assert isinstance(cache, PlaneCache)
        assert self.live_heads is not None
        if call.need:
            raise HookConflict(
                f"layer {call.layer}: SpAtten's attention of decoded tokens gives no {min(call.need)!r}."
            )
        marked = self._live_marks(call.layer, cache)
        masks = marked is not None and not cache.decodes_on_read
        view = cache.planes(call.layer, None if marked is None or masks else marked_slots(marked))
        behind = call.pos[:, None, :, None] - view.pos[:, :, None]
        seen = (behind >= 0) & (call.pos >= 0)[:, None, :, None]
        if call.window is not None:
            seen = seen & (behind < call.window)
        if view.valid is not None:
            seen = seen & view.valid[:, :, None]
        if masks:
            assert marked is not None
            seen = seen & marked[:, None, None]
        found = progressive_attention(call.q, view, seen, call.scale, self.attention, call.layer)
        live = self.live_heads.unflatten(1, found.p.shape[1:3])[..., None]
        p = found.p if bool(live.all()) else found.p * live[..., None].to(found.p.dtype)
        self._add(p.flatten(1, 3).sum(1), view.pos, view.valid)
        used = live.any(2, keepdim=True)  # (batch, KV heads, 1, 1): fetched at all
        keys = (seen.any(2)[:, :, None] & used).sum()
        low = ((found.refetch & live).any((2, 3))[..., None] & seen.any(2)).sum()
        values = (found.read & live[..., None]).any((2, 3)).sum()
        cache.count_reads(call.layer, int(keys), int(low), int(values))
        rows = live.expand(found.refetch.shape) & (call.pos >= 0)[:, None, None]
        cache.traffic.queries += int(rows.sum())
        cache.traffic.refetches += int((found.refetch & live).sum())
        return AttendOut(found.out.flatten(1, 2).to(call.q.dtype))

    def _add(self, colsum: Tensor, pos: Tensor, valid: Tensor | None) -> None:
        """Column sums of a layer to the tokens of its slots; all heads have the same slots."""
        pos = pos[:, 0] if valid is None else pos[:, 0].masked_fill(~valid[:, 0], -1)
        self.scores.add(colsum, pos)

    def _live_slots(self, layer: int, cache: SlotCache) -> Tensor | None:
        """Slots of the live tokens that a layer holds; None where it is all of them."""
        marked = self._live_marks(layer, cache)
        return None if marked is None else marked_slots(marked)

    def _live_marks(self, layer: int, cache: SlotCache) -> Bool[Tensor, "batch slots"] | None:
        """Which slots hold live tokens; None where it is all of them."""
        assert self.live is not None
        table = cache.layers[layer].table
        pos, valid = table.read(POS)[:, 0], table.valid()
        marked = self.live.gather(1, pos.long())
        held = torch.ones_like(marked) if valid is None else valid[:, 0]
        return None if bool((marked | ~held).all()) else marked & held


class InvertedRank:
    """The least important first: the control that should be the worst."""

    def __call__(self, scores: Tensor) -> Tensor:
        return -scores


class RandomRank:
    """Any order, drawn at every choice."""

    def __init__(self, seed: int | torch.Generator = 0) -> None:
        self.generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)

    def __call__(self, scores: Tensor) -> Tensor:
        return torch.rand(scores.shape, generator=self.generator).to(scores)
