"""MPCache as a policy of a plain cache: drop once after the prompt, then read few clusters at every step.

Dropping: a token stays for its attention from the last prompt queries, A = softmax(Q_w Kᵀ / √d), causal,
meant over heads. Reading: see `clusters`. Later layers of a group read what the first one of it chose.

Source: Zeng et al. 2025, "MPCache", sections 4.1 to 4.4. Layers in a group: the paper shares between adjacent
layers and does not say how many; 2 here, and none by default.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shoestring.generation.clusters import (
    ClusterOptions,
    ClusterTable,
    LinearSimilarity,
    Scorer,
    choose_clusters,
    chosen_slots,
)
from shoestring.generation.selection import marked_slots, top_k
from shoestring.generation.slot_cache import SlotCache
from shoestring.models.hooks import AttnPlan, Context, Phase
from shoestring.notices import notice_fallback

LONG_PROMPT, SHARE, LONG_SHARE = 24_000, 0.2, 0.1
"""Share of the prompt whose queries judge, and that of prompts above a length."""


@dataclass(frozen=True)
class KeepShare:
    """Static eviction by rank: the ceil(share · prompt) tokens with the most attention stay.

    Raises: ValueError for a share outside (0, 1].
    """

    share: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} of the prompt to keep must be in (0, 1].")

    def keep(self, attention: Float[Tensor, "w tokens"]) -> Bool[Tensor, " tokens"]:
        """Marks from the attention of w rows."""
        count = math.ceil(self.share * attention.shape[1])
        return top_k(attention.sum(0), count, what="attention of the last queries")


@dataclass(frozen=True)
class KeepAbove:
    """Static eviction by value: a token stays if one of the rows gives it `threshold` or more; layers differ.

    Raises: ValueError for a threshold outside [0, 1].
    """

    threshold: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} bounds a probability; it must be from 0 to 1.")

    def keep(self, attention: Float[Tensor, "w tokens"]) -> Bool[Tensor, " tokens"]:
        """Marks from the attention of w rows."""
        return (attention >= self.threshold).any(0)


class LastQueries:
    """A hook that keeps the queries of the last part of the prompt, layer by layer, until it is read."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, int, float]] = {}

    def clear(self) -> None:
        """Forget them."""
        self._kept.clear()

    def attn_plan(self, layer: int, q: Tensor, pos: Tensor, ctx: Context) -> AttnPlan | None:
        """Keep what may still be among the last ones: the share of what has been seen so far."""
        if ctx.phase is Phase.PREFILL or (layer in self._kept and self._open(layer, pos)):
            before, seen, _ = self._kept.get(layer, (q[:, :, :0], 0, 0.0))
            seen += q.shape[2]
            rows = max(1, int(SHARE * seen))
            self._kept[layer] = torch.cat([before, q], 2)[:, :, -rows:].clone(), seen, q.shape[-1] ** -0.5
        return None

    def attention(
        self, layer: int, k: Float[Tensor, "1 kv_heads tokens dim"], scale: float | None = None
    ) -> Float[Tensor, "w tokens"]:
        """B = mean over heads of softmax(Q_w Kᵀ · scale), row i seeing the tokens up to its own."""
        q, _, usual = self._kept[layer]
        tokens = k.shape[2]
        rows = max(1, int((LONG_SHARE if tokens > LONG_PROMPT else SHARE) * tokens))
        q = q[:, :, -rows:]
        total = torch.zeros(q.shape[2], tokens, dtype=q.dtype)
        own = torch.arange(tokens - q.shape[2], tokens)[:, None]
        hidden = torch.arange(tokens)[None] > own
        group = q.shape[1] // k.shape[1]
        for head in range(q.shape[1]):
            scores = (usual if scale is None else scale) * q[0, head] @ k[0, head // group].mT.to(q.dtype)
            total += scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return total / q.shape[1]

    def _open(self, layer: int, pos: Tensor) -> bool:
        """A prompt may end with a chunk of a single token, which looks like decoding."""
        return self._kept[layer][1] == int(pos[0, 0])


class MPCache:
    """A `CachePolicy`: static eviction after the prompt, then clusters chosen per step and KV head.

    static: which tokens of the prompt stay, None for all. clusters: sizes and shares. layer_group: so many
    adjacent layers share one choice. dense_layers: first layers that read everything. scorer: what ranks
    clusters, by default the linear similarity. queries: a hook that has seen the prompt already, else an own
    one. Steps of several tokens read everything.

    Raises: ValueError for a group below 1, a negative number of dense layers, or a group with a static
    eviction that keeps different numbers in each layer; on `after_prefill`, for several samples.
    """

    def __init__(
        self,
        static: KeepShare | KeepAbove | None = KeepShare(),
        clusters: ClusterOptions = ClusterOptions(),  # noqa: B008  (frozen)
        *,
        layer_group: int = 1,
        dense_layers: int = 0,
        scorer: Scorer | None = None,
        queries: LastQueries | None = None,
    ) -> None:
        if layer_group < 1 or dense_layers < 0:
            raise ValueError(
                f"layer_group={layer_group} must be 1 or more, dense_layers={dense_layers} 0 or more."
            )
        if layer_group > 1 and isinstance(static, KeepAbove):
            raise ValueError(
                "layers that share a choice must hold equally many tokens; use KeepShare with layer_group > "
                "1."
            )
        self.static, self.clusters, self.layer_group = static, clusters, layer_group
        self.dense_layers, self._observes = dense_layers, queries is None
        self.scorer = LinearSimilarity(clusters.alpha) if scorer is None else scorer
        self.queries = LastQueries() if queries is None else queries
        self.tables: list[ClusterTable] | None = None
        self.selections, self.attended = 0, 0
        """Choices made so far, and tokens that all reads together had."""

    @property
    def hooks(self) -> Sequence[object]:
        return (self.queries, self) if self._observes else (self,)

    def start(self, cache: SlotCache) -> None:
        """Forget the sequence before."""
        self.tables = None
        if self._observes:
            self.queries.clear()

    def after_prefill(self, cache: SlotCache) -> None:
        """Evict, and take the bounds of what stays."""
        if cache.batch != 1:
            raise ValueError(f"MPCache evicts from one sequence at a time, not from {cache.batch}.")
        self.tables = []
        for layer, store in enumerate(cache.layers):
            if self.static is not None and layer >= self.dense_layers:
                kept = self.static.keep(self.queries.attention(layer, store.keys_values()[0]))
                cache.evict(layer, marked_slots(kept[None]))
            self.tables.append(ClusterTable(self.clusters.fine))
            self.tables[layer].follow(store.keys_values()[0])
            if self.clusters.plan(store.table.longest) is None:
                notice_fallback(
                    "MPCache",
                    f"{store.table.longest} tokens are fewer than two clusters of {self.clusters.coarse}; "
                    "all of them are read",
                )
        if self._observes:
            self.queries.clear()

    def after_step(self, cache: SlotCache) -> None:
        """Renew the bounds of the newest cluster."""
        assert self.tables is not None
        for store, table in zip(cache.layers, self.tables, strict=True):
            table.follow(store.keys_values()[0])

    def attn_plan(self, layer: int, q: Tensor, pos: Tensor, ctx: Context) -> AttnPlan | None:
        """The slots to read; None while the prompt is read, and where all are."""
        if self.tables is None or q.shape[2] != 1:
            return None
        table = self.tables[layer]
        plan = self.clusters.plan(table.tokens)
        if plan is None or layer < self.dense_layers:
            self.attended += table.tokens
            return None
        self.attended += plan.attended
        group = ("clusters", (layer - self.dense_layers) // self.layer_group)
        if (layer - self.dense_layers) % self.layer_group == 0:
            assert table.low is not None
            assert table.high is not None
            summed = q[:, :, 0].unflatten(1, (table.low.shape[1], -1)).sum(2)
            chosen = choose_clusters(summed, table.low, table.high, plan, self.scorer)
            ctx.shared[group] = chosen_slots(chosen, plan)
            self.selections += 1
        return AttnPlan(select=ctx.shared[group])
