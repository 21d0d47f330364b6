"""What a draft's cache weighs, and the time of attention of a tree behind a long text."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.speculation.draft_tree import DraftTree
from shoestring.generation.speculation.glide import GlideRun
from shoestring.generation.speculation.tree_attention import tree_attend
from shoestring.layers.attention_masks import KVView
from shoestring.models.decoder_config import DecoderConfig
from shoestring.systems.longspec.claims import DRAFT_BYTES, HYBRID, HYBRID_FUSED
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.timing import time_interleaved

SHAPE = (4, 4, 4, 4)
"""Nodes at each depth of the tree that is timed: 17 with the root."""


def bytes_row(draft: GlideRun, context: int) -> Row:
    """Of a draft that has drafted behind `context` tokens."""
    cfg, ring = draft.module.cfg, draft.ring
    full = DenseCache(1, 1, cfg.num_key_value_heads, cfg.head_dim, capacity=context)
    part = torch.zeros(1, cfg.num_key_value_heads, context, cfg.head_dim)
    full.append(0, part, part, torch.arange(context)[None])
    return DRAFT_BYTES.row(baseline=full.nbytes(), method=ring.nbytes())


def wide_tree(shape: tuple[int, ...]) -> DraftTree:
    """Nodes of every depth spread evenly over those above."""
    parents, level = [-1], [0]
    for width in shape:
        start = len(parents)
        parents += [level[node * len(level) // width] for node in range(width)]
        level = list(range(start, start + width))
    return DraftTree(tuple(range(len(parents))), tuple(parents))


def explicit_softmax(
    q: Float[Tensor, "1 heads n dim"], view: KVView, mask: Float[Tensor, "rows slots"], scale: float
) -> Float[Tensor, "1 heads n dim"]:
    """softmax(q kᵀ · scale + mask) v, the query heads of a KV head as so many rows of one product."""
    folded = q.reshape(1, view.k.shape[1], -1, q.shape[3])
    scores = (folded @ view.k.transpose(-1, -2)).mul_(scale).add_(mask)
    return (scores.softmax(-1) @ view.v).reshape(q.shape)


def fused_masked(
    q: Float[Tensor, "1 heads n dim"], view: KVView, mask: Float[Tensor, "rows slots"], scale: float
) -> Float[Tensor, "1 heads n dim"]:
    """torch's kernel with the same mask."""
    folded = q.reshape(1, view.k.shape[1], -1, q.shape[3])
    return F.scaled_dot_product_attention(folded, view.k, view.v, attn_mask=mask, scale=scale).reshape(
        q.shape
    )


def tree_inputs(
    cfg: DecoderConfig, context: int, shape: tuple[int, ...], seed: int
) -> tuple[Tensor, KVView, Int[Tensor, "1 n"], Bool[Tensor, "n n"], Float[Tensor, "rows slots"]]:
    """Queries, keys and values, positions, who sees whom in the tree, and that as an additive mask."""
    tree, generator = wide_tree(shape), torch.Generator().manual_seed(seed)
    n = len(tree)
    q = torch.randn(1, cfg.num_attention_heads, n, cfg.head_dim, generator=generator)
    k, v = (
        torch.randn(1, cfg.num_key_value_heads, context + n, cfg.head_dim, generator=generator)
        for _ in range(2)
    )
    pos = context + torch.tensor(tree.depths())
    view = KVView(k, v, torch.cat([torch.arange(context), pos])[None, None])
    hidden = torch.zeros(n, context + n)
    hidden[:, context:].masked_fill_(~tree.ancestors(), -torch.inf)
    mask = hidden.repeat(cfg.num_attention_heads // cfg.num_key_value_heads, 1)
    return q, view, pos[None], tree.ancestors(), mask


@torch.inference_mode()
def operator_rows(cfg: DecoderConfig, context: int, rounds: int, seed: int) -> list[Row]:
    """Attention of one layer of a target of this shape."""
    q, view, pos, among, mask = tree_inputs(cfg, context, SHAPE, seed)
    times = time_interleaved(
        {
            "hybrid": lambda: tree_attend(q, view, pos, among, cfg.scale),
            "explicit": lambda: explicit_softmax(q, view, mask, cfg.scale),
            "fused": lambda: fused_masked(q, view, mask, cfg.scale),
        },
        rounds=rounds,
        warmup=1,
    )
    return [
        HYBRID.row(**times.figures("hybrid", "explicit")),
        HYBRID_FUSED.row(**times.figures("hybrid", "fused")),
    ]
