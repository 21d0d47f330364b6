"""Causal attention inside clusters: each token among the tokens of its own cluster that came before it.

A token belongs to one cluster. The tokens of a cluster stand in a row, cut into blocks of w; each sees those
up to itself in its own block and all of the block before. That depends on the past only, drops no token and
costs n · 2w scores at most. (The paper's mode is `top_w_attention`; this one is ours.)
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoestring.layers.routing.relative_tables import RelativeTables
from shoestring.layers.routing.tile_attention import attend_tiles, naive_row


class ClusterBlocks(NamedTuple):
    """Where tokens stand. Tokens are numbered over all samples and heads; what fills up a block is token 0.

    first: tokens of the first block of each cluster. later: of each other block, behind those of the block
    before it. place: of each token in the blocks, first ones first.
    """

    first: Int[Tensor, "clusters w"]
    later: Int[Tensor, "blocks two_w"]
    place: Int[Tensor, " tokens"]


def cluster_attention(
    q: Float[Tensor, "batch heads n dim"],
    k: Float[Tensor, "batch heads n dim"],
    v: Float[Tensor, "batch heads n dim_v"],
    cluster: Int[Tensor, "batch heads n"],
    n_clusters: int,
    w: int,
    *,
    scale: float,
    mask_self: bool = False,
    valid: Bool[Tensor, "batch n"] | None = None,
    relative: RelativeTables | None = None,
) -> Float[Tensor, "batch heads n dim_v"]:
    """Outputs; 0 for padding. mask_self: a token sees itself only where it sees nothing else. relative:
    distances count ranks inside the cluster.

    Blocks begin with the cluster, so where a token stands in its block, and with it every rounding, depends
    on the past alone: outputs do not change by a bit when later tokens do.
    """
    if valid is not None:
        cluster, n_clusters = cluster.masked_fill(~valid[:, None], n_clusters), n_clusters + 1
    blocks = cluster_blocks(cluster.flatten(0, 1), n_clusters, w)
    q_rows, k_rows, v_rows = (t.flatten(0, 2) for t in (q, k, v))
    first, later = blocks.first, blocks.later
    own = torch.ones(w, w, dtype=torch.bool, device=q.device).tril()
    if mask_self:
        others = own.tril(-1)
        others[0, 0] = True  # the first of a cluster is alone
        first_seen: Tensor | None = others
    else:
        first_seen = None
    parts = [
        attend_tiles(
            _rows(q_rows, first), _rows(k_rows, first), _rows(v_rows, first), first_seen,
            scale=scale, causal=True, relative=relative,
        )
    ]  # fmt: skip
    if len(later):
        seen = torch.cat([torch.ones_like(own), own.tril(-1) if mask_self else own], 1)
        parts.append(
            attend_tiles(
                _rows(q_rows, later[:, w:]), _rows(k_rows, later), _rows(v_rows, later), seen,
                scale=scale, relative=relative, shift=w,
            )
        )  # fmt: skip
    out = torch.cat(parts).flatten(0, 1).index_select(0, blocks.place).view(v.shape)
    return out if valid is None else out.masked_fill(~valid[:, None, :, None], 0.0)


def cluster_blocks(cluster: Int[Tensor, "groups n"], n_clusters: int, w: int) -> ClusterBlocks:
    """The blocks of each group (sample and head). How many later ones there are depends on the data, except
    where shapes must be static: there it is the most there can be."""
    groups, n = cluster.shape
    rank = cluster_ranks(cluster, cluster.argsort(dim=-1, stable=True))
    number = torch.arange(groups, device=cluster.device)[:, None] * n_clusters + cluster
    sizes = torch.zeros(groups * n_clusters, dtype=torch.long, device=cluster.device)
    sizes = sizes.scatter_add(0, number.flatten(), torch.ones_like(number).flatten())
    later_each = (sizes - 1).clamp(min=0) // w
    most = groups * ((n - 1) // w)
    count = most if torch.compiler.is_compiling() else int(later_each.sum())
    first_later = groups * n_clusters + later_each.cumsum(0) - later_each
    is_first = rank < w
    block = torch.where(is_first, number, first_later[number] + rank // w - 1)
    place = (block * w + rank % w).flatten()
    tokens = torch.zeros((groups * n_clusters + count) * w, dtype=torch.long, device=cluster.device)
    tokens = tokens.scatter(0, place, torch.arange(groups * n, device=cluster.device)).view(-1, w)
    before = torch.zeros(count + 1, dtype=torch.long, device=cluster.device)
    before = before.scatter(
        0,
        torch.where(is_first, count, block - groups * n_clusters).flatten(),
        torch.where(rank < 2 * w, number, block - 1).flatten(),
    )[:count]
    first, own = tokens.split([groups * n_clusters, count])
    return ClusterBlocks(first, torch.cat([tokens[before], own], 1), place)


def cluster_ranks(
    cluster: Int[Tensor, "*batch n"], order: Int[Tensor, "*batch n"]
) -> Int[Tensor, "*batch n"]:
    """How many earlier tokens of the same cluster each token has. order: a stable sort by cluster."""
    place = torch.arange(cluster.shape[-1], device=cluster.device).expand_as(cluster)
    ordered = cluster.gather(-1, order)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    start = place.masked_fill(~starts, 0).cummax(-1).values
    return torch.zeros_like(cluster).scatter(-1, order, place - start)


def naive_cluster_attention(
    q: Float[Tensor, "batch heads n dim"],
    k: Float[Tensor, "batch heads n dim"],
    v: Float[Tensor, "batch heads n dim_v"],
    cluster: Int[Tensor, "batch heads n"],
    w: int,
    *,
    scale: float,
    mask_self: bool = False,
    valid: Bool[Tensor, "batch n"] | None = None,
    relative: RelativeTables | None = None,
) -> Float[Tensor, "batch heads n dim_v"]:
    """Token by token: the meaning of `cluster_attention`."""
    out = []
    for b, h in torch.cartesian_prod(torch.arange(q.shape[0]), torch.arange(q.shape[1])).tolist():
        members: dict[int, list[int]] = {}
        for i, c in enumerate(cluster[b, h].tolist()):
            if valid is None or valid[b, i]:
                members.setdefault(c, []).append(i)
        found = {}
        for row in members.values():
            for rank, i in enumerate(row):
                seen = [(j, s - rank) for s, j in enumerate(row) if s // w >= rank // w - 1 and s <= rank]
                if mask_self:
                    seen = [pair for pair in seen if pair[0] != i] or seen
                found[i] = naive_row(q[b, h, i], k[b, h], v[b, h], seen, scale, relative)
        out.append(torch.stack([found.get(i, torch.zeros_like(v[b, h, 0])) for i in range(q.shape[2])]))
    return torch.stack(out).unflatten(0, q.shape[:2])


def _rows(x: Float[Tensor, "tokens dim"], index: Int[Tensor, "tiles m"]) -> Float[Tensor, "tiles m dim"]:
    return x.index_select(0, index.flatten()).view(*index.shape, x.shape[-1])
