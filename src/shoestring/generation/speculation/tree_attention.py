"""Hybrid tree attention: the text so far by the kernel without a mask, the drafted tree with one, merged.

Source: Yang et al. 2025, "LongSpec", section 3.3 (hybrid tree attention); Dao 2023, "FlashAttention-2",
section 2.3 (merging by log-sum-exp).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoestring.layers.attention import AttendOut, attend, merge
from shoestring.layers.attention_masks import Causal, Explicit, Full, KVView, Mask
from shoestring.models.hooks import AttendCall, AttnPlan, Context


def tree_attend(
    q: Float[Tensor, "batch heads n dim"],
    view: KVView,
    pos: Int[Tensor, "batch n"],
    among: Bool[Tensor, "n nodes"],
    scale: float,
    window: int | None = None,
) -> Float[Tensor, "batch heads n dim"]:
    """Attention of n nodes of a tree, whose keys are the last of `view`, in the order of the nodes.

    pos: positions of the n nodes. among: which of all nodes so far each sees. Every node sees all slots
    before the tree, within the window if there is one.
    """
    n = among.shape[1]
    text, tree = _part(view, slice(0, -n)), _part(view, slice(-n, None))
    own = Explicit(among[None, None])
    if text.k.shape[2] == 0:
        return attend(q, tree, own, scale).out
    before: Mask = Full()
    if window is not None and bool((pos.amax(1) - text.pos.amin((1, 2)) >= window).any()):
        before = Causal(pos, text.pos)
    else:
        window = None
    parts = (
        attend(q, text, before, scale, window, need={"lse"}),
        attend(q, tree, own, scale, need={"lse"}),
    )
    one, other = ((part.out, part.lse) for part in parts if part.lse is not None)
    return merge(one, other)[0]


def naive_tree_attend(
    q: Float[Tensor, "batch heads n dim"],
    view: KVView,
    pos: Int[Tensor, "batch n"],
    among: Bool[Tensor, "n nodes"],
    scale: float,
    window: int | None = None,
) -> Float[Tensor, "batch heads n dim"]:
    """The same with one mask over all keys."""
    n, slots = among.shape[1], view.k.shape[2]
    behind = pos[:, None, :, None] - view.pos[:, :, None]
    seen = torch.ones_like(behind, dtype=torch.bool) if window is None else behind < window
    seen = torch.cat([seen[..., : slots - n], seen[..., slots - n :] & among], -1)
    return attend(q, view, Explicit(seen), scale).out


class TreeAttention:
    """A hook: the tokens of the forward pass are nodes of a tree, of which each sees what `among` says."""

    def __init__(self, among: Bool[Tensor, "n n"]) -> None:
        self.among = among

    def attn_plan(self, layer: int, q: Tensor, pos: Tensor, ctx: Context) -> AttnPlan:
        """Attention by `tree_attend`."""
        return AttnPlan(attend=self._attend)

    def _attend(self, call: AttendCall) -> AttendOut:
        view, _ = call.read()
        return AttendOut(tree_attend(call.q, view, call.pos, self.among, call.scale, call.window))


def _part(view: KVView, slots: slice) -> KVView:
    valid = None if view.valid is None else view.valid[:, :, slots]
    return KVView(view.k[:, :, slots], view.v[:, :, slots], view.pos[:, :, slots], valid)
