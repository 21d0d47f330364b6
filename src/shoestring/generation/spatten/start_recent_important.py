"""The selection of SpAtten's public language-model code, which is not the algorithm of its paper.

The cache of a layer is the first tokens, the most recent ones and the important ones: those of the largest
attention scores before the softmax, summed over the queries of the current step, for each KV head by itself;
nothing is accumulated. The
public code also renumbers keys by their slots; here they keep the positions of their tokens.

Source: mit-han-lab/spatten, the language-model part of the code.
"""

from collections.abc import Sequence

from torch import Tensor

from shoestring.generation.evicting_cache import protected_slots
from shoestring.generation.selection import marked_slots, top_k
from shoestring.generation.slot_cache import SlotCache
from shoestring.layers.attention import AttendOut
from shoestring.models.hooks import AttendCall, AttnPlan, Context
from shoestring.models.protocols import HookConflict

SCORES = "scores of this step"


class StartRecentImportant:
    """A `CachePolicy`: every KV head keeps `start` first, `recent` last and `important` tokens.

    Raises: ValueError for negative numbers or none at all.
    """

    takes_drafts = True

    def __init__(self, start: int = 4, recent: int = 128, important: int = 128) -> None:
        if min(start, recent, important) < 0 or start + recent + important == 0:
            raise ValueError(
                f"start={start}, recent={recent}, important={important}: none may be negative, and one must "
                "be 1 or more."
            )
        self.first, self.recent, self.important = start, recent, important

    @property
    def hooks(self) -> Sequence[object]:
        return (self,)

    def start(self, cache: SlotCache) -> None:
        if SCORES not in cache.side:
            cache.side.add(SCORES, per_head=True)

    def attn_plan(self, layer: int, q: Tensor, pos: Tensor, ctx: Context) -> AttnPlan:
        """The plain attention, with its scores noted beside the slots."""
        return AttnPlan(attend=self._attend)

    def after_prefill(self, cache: SlotCache) -> None:
        self._evict(cache)

    def after_step(self, cache: SlotCache) -> None:
        self._evict(cache)

    def _attend(self, call: AttendCall) -> AttendOut:
        view, mask = call.read()
        if not isinstance(call.cache, SlotCache):
            raise HookConflict(f"layer {call.layer}: scores are kept beside a cache; pass a cache.")
        # Summed over queries and the heads of a group first: Σ_i q_i·k_j is (Σ_i q_i)·k_j where all see j.
        groups = call.q.unflatten(1, (view.k.shape[1], -1)).sum(2)
        scores = call.scale * groups.float() @ view.k.float().mT
        seen = mask.seen(slice(0, scores.shape[2]), slice(0, scores.shape[3]), call.window)
        if seen is not None:
            scores = scores.masked_fill(~seen, 0.0)
        call.cache.side[SCORES][call.layer].copy_(scores.sum(2))
        return call.default()

    def _evict(self, cache: SlotCache) -> None:
        count = self.first + self.recent + self.important
        for layer in range(cache.n_layers):
            table = cache.layers[layer].table
            if table.longest <= count:
                continue
            safe = protected_slots(cache, layer, self.first, self.recent)
            scores = cache.side[SCORES][layer]
            safe = safe.expand(scores.shape)
            valid = table.valid()
            kept = top_k(scores, count, protected=safe, valid=valid, what=f"scores of layer {layer}")
            cache.evict(layer, marked_slots(kept))
