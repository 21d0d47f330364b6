"""Attention inside clusters of tokens: the two ways to say who belongs to a cluster, as functions.

Top-w (the paper's): each centroid takes the w tokens that suit it best; a token may be taken by several, whose
outputs are averaged, or by none, which gives 0. Whether a token is taken depends on the tokens after it, so a
causal mask does not make it causal.
Strict (this project's): each token belongs to its best centroid; the tokens of a cluster stand in a row, cut
into blocks of w, and each sees those before it in its own block and in the one before. It depends on the past
only, and no token is dropped.

Source: Roy et al. 2021, "Efficient Content-Based Sparse Attention with Routing Transformers", section 4.1 and
algorithm 1.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from shoestring.layers.local_attention import Blocks, LocalPattern, local_attention, softmax_weights
from shoestring.layers.relative_tables import RelativeTables


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
    queries, keys, values = _take(q, rows), _take(k, columns), _take(v, columns)
    seen = None
    if mask_self or key_valid is not None or (causal and not shared):
        seen = _seen(rows, columns, causal, mask_self, key_valid)
    out = _attend(queries, keys, values, seen, causal and shared, scale, relative)
    counted = torch.ones_like(out[..., 0])
    if valid is not None:
        counted = _flag(valid, rows).to(out.dtype)
        out = out * counted[..., None]
    hits = _put(counted[..., None], rows, q.shape[2])[..., 0]
    return _put(out, rows, q.shape[2]) / (hits + hits_eps)[..., None], hits


def strict_attention(
    q: Float[Tensor, "batch heads n dim"],
    k: Float[Tensor, "batch heads n dim"],
    v: Float[Tensor, "batch heads n dim_v"],
    cluster: Int[Tensor, "batch heads n"],
    n_clusters: int,
    w: int,
    *,
    scale: float,
    causal: bool = True,
    mask_self: bool = False,
    valid: Bool[Tensor, "batch n"] | None = None,
    relative: RelativeTables | None = None,
) -> Float[Tensor, "batch heads n dim_v"]:
    """Each token among those of its cluster in its block of w, the block before (and after, if not causal)."""
    if valid is not None:
        cluster = cluster.masked_fill(~valid[:, None], n_clusters)
    order = cluster.argsort(-1, stable=True)
    rank = cluster_ranks(cluster, order)
    # One number for cluster and block: two tokens may meet if theirs differ by at most 1.
    code = (cluster * (q.shape[2] // w + 2) + rank // w).gather(-1, order)
    alone = ((rank == 0) if causal else (_sizes(cluster) == 1)).gather(-1, order)

    def allowed(blocks: Blocks) -> Tensor:
        apart = blocks.queries(code[..., None]) - blocks.keys(code[..., None]).transpose(-1, -2)
        near = apart.abs() <= 1
        if not mask_self:
            return near
        return near & ((blocks.distance != 0) | blocks.queries(alone[..., None].int()).bool())

    # Tokens that may meet stand less than 2w apart in the order of clusters, which may begin anywhere.
    pattern = LocalPattern(w, before=2, after=0 if causal else 2, causal=causal)
    queries, keys, values = (_take_rows(t, order) for t in (q, k, v))
    reach = pattern.span
    out = local_attention(
        queries,
        keys,
        values,
        pattern,
        scale=scale,
        allowed=allowed,
        bias=None
        if relative is None
        else lambda b: relative.scores(b.queries(queries), b.distance, reach) * scale,
        value_bias=None if relative is None else lambda b, a: relative.outputs(a, b.distance, reach),
    )
    back = order.argsort(-1)
    out = _take_rows(out, back)
    return out if valid is None else out.masked_fill(~valid[:, None, :, None], 0.0)


def cluster_ranks(
    cluster: Int[Tensor, "batch heads n"], order: Int[Tensor, "batch heads n"]
) -> Int[Tensor, "batch heads n"]:
    """How many earlier tokens of the same cluster each token has. order: a stable sort by cluster."""
    place = torch.arange(cluster.shape[-1], device=cluster.device).expand_as(cluster)
    ordered = cluster.gather(-1, order)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    start = place.masked_fill(~starts, 0).cummax(-1).values
    return torch.zeros_like(cluster).scatter(-1, order, place - start)


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
                total[i] = total[i] + _one(q[b, h, i], k[b, h], v[b, h], seen, scale, relative)
        out.append(torch.stack([t / (count + hits_eps) for t, count in zip(total, hits, strict=True)]))
    return torch.stack(out).unflatten(0, q.shape[:2])


def naive_strict_attention(
    q: Float[Tensor, "batch heads n dim"],
    k: Float[Tensor, "batch heads n dim"],
    v: Float[Tensor, "batch heads n dim_v"],
    cluster: Int[Tensor, "batch heads n"],
    w: int,
    *,
    scale: float,
    causal: bool = True,
    mask_self: bool = False,
    valid: Bool[Tensor, "batch n"] | None = None,
    relative: RelativeTables | None = None,
) -> Float[Tensor, "batch heads n dim_v"]:
    """Token by token: the meaning of `strict_attention`."""
    out = []
    for b, h in torch.cartesian_prod(torch.arange(q.shape[0]), torch.arange(q.shape[1])).tolist():
        members: dict[int, list[int]] = {}
        for i, c in enumerate(cluster[b, h].tolist()):
            if valid is None or valid[b, i]:
                members.setdefault(c, []).append(i)
        found = {}
        for row in members.values():
            for rank, i in enumerate(row):
                seen = [
                    (j, s - rank)
                    for s, j in enumerate(row)
                    if abs(s // w - rank // w) <= 1 and (not causal or s <= rank)
                ]
                if mask_self:
                    seen = [pair for pair in seen if pair[0] != i] or seen
                found[i] = _one(q[b, h, i], k[b, h], v[b, h], seen, scale, relative)
        out.append(torch.stack([found.get(i, torch.zeros_like(v[b, h, 0])) for i in range(q.shape[2])]))
    return torch.stack(out).unflatten(0, q.shape[:2])


def _one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: list[tuple[int, int]],
    scale: float,
    relative: RelativeTables | None,
) -> Tensor:
    """One query over the keys (position, distance) that it sees."""
    positions, distances = [j for j, _ in seen], torch.tensor([apart for _, apart in seen])
    keys, values = k[positions], v[positions]
    if relative is not None:
        largest = relative.max_relative_position
        rows = distances.clamp(-largest, largest) + largest
        keys, values = keys + relative.keys[rows], values + relative.values[rows]
    return (keys @ q * scale).softmax(0) @ values


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    seen: Tensor | None,
    causal: bool,
    scale: float,
    relative: RelativeTables | None,
) -> Tensor:
    """Attention of each cluster by itself; a row that sees nothing gets 0."""
    w, u = queries.shape[-2], keys.shape[-2]
    if relative is not None and seen is None:
        seen = torch.ones(w, u, dtype=torch.bool, device=queries.device)
        seen = seen.tril() if causal else seen
    blind = None
    if seen is not None:
        blind = ~seen.any(-1, keepdim=True)
        seen = seen | blind
    if relative is None:
        q, k, v = (t.flatten(0, 1) for t in (queries, keys, values))
        mask = None if seen is None else seen.expand(*queries.shape[:2], *seen.shape[-3:]).flatten(0, 1)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal and seen is None, scale=scale
        ).unflatten(0, queries.shape[:2])
    else:
        assert seen is not None
        exact = torch.promote_types(queries.dtype, torch.float32)
        distance = torch.arange(u, device=queries.device) - torch.arange(w, device=queries.device)[:, None]
        scores = (queries @ keys.transpose(-1, -2)).to(exact) * scale
        scores = scores + relative.scores(queries, distance, max(w, u)) * scale
        weights = softmax_weights(scores, seen).to(values.dtype)
        out = weights @ values + relative.outputs(weights, distance, max(w, u))
    return out if blind is None else out.masked_fill(blind, 0.0)


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


def _sizes(cluster: Int[Tensor, "batch heads n"]) -> Int[Tensor, "batch heads n"]:
    """How many tokens the cluster of each token has."""
    counts = torch.zeros(*cluster.shape[:2], int(cluster.max()) + 1, dtype=torch.long, device=cluster.device)
    return counts.scatter_add_(-1, cluster, torch.ones_like(cluster)).gather(-1, cluster)


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
    out = out.index_add(0, _flat(index.flatten(2), n), x.flatten(0, 3))
    return out.view(*index.shape[:2], n, x.shape[-1])


def _flat(index: Int[Tensor, "batch heads m"], n: int) -> Int[Tensor, " rows"]:
    first = torch.arange(index.shape[0] * index.shape[1], device=index.device) * n
    return (index.flatten(0, 1) + first[:, None]).flatten()
