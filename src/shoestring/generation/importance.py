"""How much attention each slot of a cache has had so far, as side tables that follow the slots.

importance_j = Σ over steps, rows i and the query heads of a KV head of p_ij, in every layer by itself.

Source: Zhang et al. 2023, "H2O: Heavy-Hitter Oracle for Efficient Generative Inference", section 3; the mean
over the rows that could see a slot is that of He et al. 2024, "ZipCache", section 4.2.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.generation.slot_cache import SlotCache
from shoestring.layers.attention import AttendOut
from shoestring.models.hooks import AttnPlan, Context
from shoestring.models.protocols import HookConflict

IMPORTANCE, ROWS = "importance", "importance rows"
"""Side tables, (batch, KV heads, slots): sums of probabilities, and how many rows could see the slot."""


class ColumnImportance:
    """A hook that adds up column sums of attention in the side tables of a cache.

    Call `start` with the empty cache first. decay: old sums are multiplied by it before a pass adds to them.
    What a rolled-back draft gave to older slots stays in their sums.

    Raises: ValueError for a decay outside (0, 1].
    """

    def __init__(self, decay: float = 1.0) -> None:
        if not 0 < decay <= 1:
            raise ValueError(f"decay={decay} must be above 0 and at most 1.")
        self.decay = decay

    def start(self, cache: SlotCache) -> None:
        """Add the tables to a cache that has none."""
        for name in (IMPORTANCE, ROWS):
            if name not in cache.side:
                cache.side.add(name, per_head=True)

    def attn_plan(self, layer: int, q: Tensor, pos: Tensor, ctx: Context) -> AttnPlan:
        """Ask for the column sums."""
        return AttnPlan(need=frozenset({"colsum", "colcount"}))

    def post_attn(self, layer: int, out: Tensor, stats: AttendOut, ctx: Context) -> Tensor:
        """Add them up. Raises: HookConflict where the columns are not the slots of the cache."""
        cache = ctx.cache
        if not isinstance(cache, SlotCache):
            raise HookConflict(f"layer {layer}: importance is kept beside a cache; pass a cache.")
        assert stats.colsum is not None
        assert stats.colcount is not None
        sums, rows = cache.side[IMPORTANCE][layer], cache.side[ROWS][layer]
        if stats.colsum.shape != sums.shape:
            raise HookConflict(
                f"layer {layer}: attention read {stats.colsum.shape[2]} slots of {sums.shape[2]}; a hook "
                "that selects or leaves out slots keeps importance by itself."
            )
        sums.mul_(self.decay).add_(stats.colsum.to(sums.dtype))
        rows.mul_(self.decay).add_(stats.colcount)
        return out

    @staticmethod
    def of(
        cache: SlotCache, layer: int, *, normalised: bool = False
    ) -> Float[Tensor, "batch kv_heads slots"]:
        """The sums of a layer; normalised: per row that could see the slot."""
        sums = cache.side[IMPORTANCE][layer]
        return sums / cache.side[ROWS][layer].clamp(min=1) if normalised else sums


def naive_importance(
    probabilities: list[Float[Tensor, "heads _ _"]], kv_heads: int, slots: int
) -> Float[Tensor, "kv_heads slots"]:
    """Sums over passes (heads, rows, slots), each with the slots there were then: the meaning of `ColumnImportance`."""
    total = torch.zeros(kv_heads, slots, dtype=torch.float64)
    for p in probabilities:
        group = p.shape[0] // kv_heads
        for head in range(p.shape[0]):
            for row in range(p.shape[1]):
                total[head // group, : p.shape[2]] += p[head, row].double()
    return total
