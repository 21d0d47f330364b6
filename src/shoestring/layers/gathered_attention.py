"""Attention among some of the tokens of a sequence: rows and keys outside are left out, their rows are 0.

Gathered, the tokens are a shorter sequence in the same order, so that a plain fused kernel runs on it: with a
share r of the tokens it does r² of the work.

Source: He et al. 2024, "ZipVL", Algorithm 1. That rows outside give 0 is the only reading that lets them pass
the block by the residual; the paper does not say it.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoestring.layers.attention import attend
from shoestring.layers.attention_masks import Causal, Explicit, KVView


def gathered_attention(
    q: Float[Tensor, "1 heads n dim"],
    k: Float[Tensor, "1 kv_heads n dim"],
    v: Float[Tensor, "1 kv_heads n dim"],
    kept: Bool[Tensor, "rows n"],
    pos: Int[Tensor, "1 n"],
    scale: float,
    window: int | None = None,
) -> Float[Tensor, "1 heads n dim"]:
    """Causal attention of one sequence among the tokens that `kept` marks.

    kept: one row for all heads, or one for each KV head. pos: ascending. window: as in `attend`, over
    positions.

    Raises: ValueError for another number of rows.
    """
    kv_heads = k.shape[1]
    if kept.shape[0] not in (1, kv_heads):
        raise ValueError(f"kept has {kept.shape[0]} rows; give 1, or one for each of {kv_heads} KV heads.")
    if bool(kept.all()):
        return _causal(q, k, v, pos, scale, window)
    # Token by token, as the output projection reads it: rows are moved whole.
    out = q.new_zeros(1, q.shape[2], q.shape[1], q.shape[3])
    group, each = q.shape[1] // kv_heads, kv_heads // kept.shape[0]
    for row, marks in enumerate(kept):
        index = marks.nonzero()[:, 0]
        shared = slice(row * each, (row + 1) * each)
        heads = slice(shared.start * group, shared.stop * group)
        found = attention_of_rows(q[:, heads], k[:, shared], v[:, shared], index, pos, scale, window)
        out[:, :, heads].index_copy_(1, index, found.transpose(1, 2))
    return out.transpose(1, 2)


def attention_of_rows(
    q: Float[Tensor, "1 heads n dim"],
    k: Float[Tensor, "1 kv_heads n dim"],
    v: Float[Tensor, "1 kv_heads n dim"],
    index: Int[Tensor, " m"],
    pos: Int[Tensor, "1 n"],
    scale: float,
    window: int | None = None,
) -> Float[Tensor, "1 heads m dim"]:
    """The rows of `gathered_attention` that are not 0, where all heads keep the tokens `index`, ascending."""
    own_q, own_k, own_v = (t.index_select(2, index) for t in (q, k, v))
    return _causal(own_q, own_k, own_v, pos[:, index], scale, window)


def naive_gathered_attention(
    q: Float[Tensor, "1 heads n dim"],
    k: Float[Tensor, "1 kv_heads n dim"],
    v: Float[Tensor, "1 kv_heads n dim"],
    kept: Bool[Tensor, "rows n"],
    pos: Int[Tensor, "1 n"],
    scale: float,
    window: int | None = None,
) -> Float[Tensor, "1 heads n dim"]:
    """Dense attention with every column outside masked, then rows outside set to 0: what is meant."""
    kept = kept.expand(k.shape[1], -1)
    behind = pos[0, :, None] - pos[0]
    seen = (behind >= 0) & (behind < (window or int(pos.max()) + 2))
    # Rows outside see themselves, as softmax over nothing is no number; they become 0 all the same.
    seen = (seen & kept[:, None, :]) | (behind == 0)
    out = attend(q, KVView(k, v, pos[:, None]), Explicit(seen[None]), scale).out
    marks = kept.repeat_interleave(q.shape[1] // k.shape[1], 0)
    return out * marks[None, :, :, None]


def _causal(q: Tensor, k: Tensor, v: Tensor, pos: Tensor, scale: float, window: int | None) -> Tensor:
    at = pos[:, None]
    return attend(q, KVView(k, v, at), Causal(pos, at, newest=True), scale, window).out
