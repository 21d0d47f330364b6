"""Attention inside clusters that take their tokens: each centroid the w that suit it best (the paper's mode).

A token may be taken by several clusters, whose outputs are averaged, or by none, which gives 0. Whether it is
taken depends on the tokens after it, so a causal mask does not make it causal (`cluster_attention` is).

Source: Roy et al. 2021, "Efficient Content-Based Sparse Attention with Routing Transformers", section 4.1 and
algorithm 1.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoestring.layers.routing.relative_tables import RelativeTables
from shoestring.layers.routing.tile_attention import attend_tiles, naive_row


def cluster_scores(
    x: Float[Tensor, "batch heads n dim"], centroids: Float[Tensor, "heads clusters dim"]
) -> Float[Tensor, "batch heads clusters n"]:
    """mu·x of each centroid with each token, without gradient, at least in float32: ties are common below."""
    exact = torch.promote_types(x.dtype, torch.float32)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return centroids.to(exact) @ x.to(exact).transpose(-1, -2)


def top_w(
    scores: Float[Tensor, "batch heads clusters n"], w: int, valid: Bool[Tensor, "batch n"] | None = None
) -> Int[Tensor, "batch heads clusters w"]:
    """The w tokens with the highest score of each cluster, ascending; padding only where tokens run out."""
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None, None], -torch.inf)
    return scores.topk(w, -1, sorted=False).indices.sort(-1).values


def top_w_attention(
    q: Float[Tensor, "batch heads n dim"],
    k: Float[Tensor, "batch heads m dim"],
    v: Float[Tensor, "batch heads m dim_v"],
    rows: Int[Tensor, "batch heads clusters w"],
    columns: Int[Tensor, "batch heads clusters u"] | None = None,
    *,
    scale: float,
    causal: bool = False,
    mask_self: bool = False,
    valid: Bool[Tensor, "batch n"] | None = None,
    memory_valid: Bool[Tensor, "batch m"] | None = None,
    relative: RelativeTables | None = None,
    hits_eps: float = 1e-2,
) -> tuple[Float[Tensor, "batch heads n dim_v"], Float[Tensor, "batch heads n"]]:
    """Outputs, and how many clusters took each token.

    rows, columns: indices of `top_w` for queries and keys; columns: by default the rows, and then keys come
    from the same tokens. mask_self: a token sees itself only where it sees nothing else. relative: distances
    count ranks inside the cluster, not positions. hits_eps: outputs are divided by hits + hits_eps.
    """
    shared = columns is None
    columns = rows if columns is None else columns
    key_valid = valid if shared else memory_valid
    queries, values = _take(q, rows), _take(v, columns)
    keys = queries if shared and k is q else _take(k, columns)
    seen = None
    if mask_self or key_valid is not None or (causal and not shared):
        seen = _seen(rows, columns, causal, mask_self, key_valid)
    blind = None
    if seen is not None:
        blind = ~seen.any(-1, keepdim=True)
        seen = seen | blind
    out = attend_tiles(queries, keys, values, seen, scale=scale, causal=causal and shared, relative=relative)
    out = out if blind is None else out.masked_fill(blind, 0.0)
    counted = torch.ones_like(out[..., 0])
    if valid is not None:
        counted = _flag(valid, rows).to(out.dtype)
        out = out * counted[..., None]
    hits = _put(counted[..., None], rows, q.shape[2])[..., 0]
    return _put(out, rows, q.shape[2]).div_((hits + hits_eps)[..., None]), hits


def naive_top_w_attention(
    q: Float[Tensor, "batch heads n dim"],
    k: Float[Tensor, "batch heads m dim"],
    v: Float[Tensor, "batch heads m dim_v"],
    rows: Int[Tensor, "batch heads clusters w"],
    columns: Int[Tensor, "batch heads clusters u"] | None = None,
    *,
    scale: float,
    causal: bool = False,
    mask_self: bool = False,
    valid: Bool[Tensor, "batch n"] | None = None,
    memory_valid: Bool[Tensor, "batch m"] | None = None,
    relative: RelativeTables | None = None,
    hits_eps: float = 1e-2,
) -> Float[Tensor, "batch heads n dim_v"]:
    """Cluster by cluster and token by token: the meaning of `top_w_attention`."""
    key_valid = valid if columns is None else memory_valid
    columns = rows if columns is None else columns
    out = []
    for b, h in torch.cartesian_prod(torch.arange(q.shape[0]), torch.arange(q.shape[1])).tolist():
        total = [torch.zeros_like(v[b, h, 0]) for _ in range(q.shape[2])]
        hits = [0] * q.shape[2]
        for row, column in zip(rows[b, h].tolist(), columns[b, h].tolist(), strict=True):
            for rank, i in enumerate(row):
                if valid is not None and not valid[b, i]:
                    continue
                hits[i] += 1
                seen = [
                    (j, s - rank)
                    for s, j in enumerate(column)
                    if (key_valid is None or key_valid[b, j]) and (not causal or j <= i)
                ]
                if mask_self:
                    seen = [pair for pair in seen if pair[0] != i] or seen
                total[i] = total[i] + naive_row(q[b, h, i], k[b, h], v[b, h], seen, scale, relative)
        out.append(torch.stack([t / (count + hits_eps) for t, count in zip(total, hits, strict=True)]))
    return torch.stack(out).unflatten(0, q.shape[:2])


def _seen(
    rows: Tensor, columns: Tensor, causal: bool, mask_self: bool, key_valid: Tensor | None
) -> Bool[Tensor, "batch heads clusters w u"]:
    query, key = rows[..., :, None], columns[..., None, :]
    every = torch.ones(query.shape[-2], key.shape[-1], dtype=torch.bool, device=query.device)
    seen = key <= query if causal else every
    if key_valid is not None:
        seen = seen & _flag(key_valid, columns)[..., None, :]
    if mask_self:
        others = seen & (key != query)
        seen = torch.where(others.any(-1, keepdim=True), others, seen)
    return seen


def _flag(valid: Bool[Tensor, "batch n"], index: Int[Tensor, "batch heads clusters w"]) -> Tensor:
    return valid[:, None, None].expand(*index.shape[:3], -1).gather(-1, index)


def _take_rows(x: Float[Tensor, "batch heads n dim"], index: Int[Tensor, "batch heads m"]) -> Tensor:
    """x[b, h, index[b, h]], whole rows at a time: `gather` would go element by element."""
    return x.flatten(0, 2).index_select(0, _flat(index, x.shape[2])).view(*index.shape, x.shape[-1])


def _take(x: Float[Tensor, "batch heads n dim"], index: Int[Tensor, "batch heads clusters w"]) -> Tensor:
    return _take_rows(x, index.flatten(2)).unflatten(2, index.shape[2:])


def _put(x: Float[Tensor, "batch heads clusters w dim"], index: Tensor, n: int) -> Tensor:
    """Add the rows up at their positions: (batch, heads, n, dim)."""
    out = x.new_zeros(index.shape[0] * index.shape[1] * n, x.shape[-1])
    out.index_add_(0, _flat(index.flatten(2), n), x.flatten(0, 3))
    return out.view(*index.shape[:2], n, x.shape[-1])


def _flat(index: Int[Tensor, "batch heads m"], n: int) -> Int[Tensor, " rows"]:
    first = torch.arange(index.shape[0] * index.shape[1], device=index.device) * n
    return (index.flatten(0, 1) + first[:, None]).flatten()
