"""Decoding with routing heads: what is kept of the tokens so far, and the output of one more.

Strict mode keeps the last 2w tokens of each cluster in a ring, so that a step costs O(w) and the state does
not grow. Top-w mode, the paper's, must keep all tokens: whom a cluster takes changes with each new one.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.layers.routing.cluster_attention import cluster_ranks
from shoestring.layers.routing.relative_tables import RelativeTables
from shoestring.layers.routing.routing_heads import RoutingHeads
from shoestring.layers.routing.top_w_attention import cluster_scores, top_w
from shoestring.layers.state import State


def init_strict(
    heads: RoutingHeads, batch: int, device: torch.device | str | None, dtype: torch.dtype
) -> State:
    """Empty rings: keys and values (batch, heads, clusters · 2w, dim), counts (batch, heads, clusters)."""
    options = heads.options
    slots = options.n_clusters * 2 * options.window
    shape = (batch, heads.n_heads, slots, heads.head_dim)
    return {
        "keys": torch.zeros(shape, device=device, dtype=dtype),
        "values": torch.zeros(shape, device=device, dtype=dtype),
        "counts": torch.zeros(batch, heads.n_heads, options.n_clusters, device=device, dtype=torch.long),
    }


def strict_step(
    heads: RoutingHeads,
    q: Float[Tensor, "batch heads 1 dim"],
    k: Float[Tensor, "batch heads 1 dim"] | None,
    v: Float[Tensor, "batch heads 1 dim"],
    state: State,
    position: int,
) -> tuple[Float[Tensor, "batch heads 1 dim"], State]:
    """The output of the token at `position`, and the state with it."""
    options, w = heads.options, heads.options.window
    query, key, cluster = _prepared(heads, q, k, v, position)
    counts = state["counts"]
    rank = counts.gather(-1, cluster)
    base = cluster * 2 * w
    keys = _written(state["keys"], base + rank % (2 * w), key)
    values = _written(state["values"], base + rank % (2 * w), v)
    slot = torch.arange(2 * w, device=q.device)
    stored = rank - (rank - slot) % (2 * w)  # the rank of the token that each slot holds
    seen = stored >= ((rank // w - 1) * w).clamp(min=0)
    if options.convention.mask_self:
        seen = seen & ((stored != rank) | (rank == 0))
    ring = (base + slot)[..., None].expand(*q.shape[:2], 2 * w, q.shape[-1])
    out = _weigh(
        query,
        keys.gather(2, ring),
        values.gather(2, ring),
        seen,
        stored - rank,
        heads.scale,
        heads.relative,
        2 * w,
    )
    counts = counts.scatter_add(-1, cluster, torch.ones_like(cluster))
    return out, {"keys": keys, "values": values, "counts": counts}


def fill_strict(
    heads: RoutingHeads,
    q: Float[Tensor, "batch heads n dim"],
    k: Float[Tensor, "batch heads n dim"] | None,
    v: Float[Tensor, "batch heads n dim"],
    state: State,
) -> State:
    """The state after the tokens 0 .. n − 1, from an empty one."""
    w = heads.options.window
    vectors = heads.vectors(q, k)
    keys = heads.turned(vectors.keys, torch.arange(q.shape[2], device=q.device)).to(v.dtype)
    cluster = heads.kmeans.assign(vectors.route)
    rank = cluster_ranks(cluster, cluster.argsort(dim=-1, stable=True))
    counts = state["counts"].scatter_add(-1, cluster, torch.ones_like(cluster))
    # What a ring no longer holds goes to one slot more, which is cut off.
    last = rank >= counts.gather(-1, cluster) - 2 * w
    slots = state["keys"].shape[2]
    target = torch.where(last, cluster * 2 * w + rank % (2 * w), slots)[..., None].expand_as(v)

    def filled(old: Tensor, new: Tensor) -> Tensor:
        spare = torch.cat([old, old[:, :, :1]], 2)
        return spare.scatter(2, target, new.to(old.dtype))[:, :, :slots]

    return {"keys": filled(state["keys"], keys), "values": filled(state["values"], v), "counts": counts}


def init_top_w(
    heads: RoutingHeads, batch: int, device: torch.device | str | None, dtype: torch.dtype
) -> State:
    """No tokens: keys and values (batch, heads, 0, dim), scores (batch, heads, clusters, 0)."""
    empty = torch.zeros(batch, heads.n_heads, 0, heads.head_dim, device=device, dtype=dtype)
    scores = torch.zeros(batch, heads.n_heads, heads.options.n_clusters, 0, device=device)
    return {"keys": empty, "values": empty, "scores": scores}


def top_w_step(
    heads: RoutingHeads,
    q: Float[Tensor, "batch heads 1 dim"],
    v: Float[Tensor, "batch heads 1 dim"],
    state: State,
    position: int,
) -> tuple[Float[Tensor, "batch heads 1 dim"], State]:
    """The output of the token at `position`: each cluster takes its top w among the tokens so far."""
    vectors = heads.vectors(q, None)
    turn = torch.tensor([position], device=q.device)
    query, key = (heads.turned(t, turn).to(v.dtype) for t in (vectors.queries, vectors.keys))
    scores = torch.cat(
        [state["scores"], cluster_scores(vectors.route, heads.kmeans.centroids).to(state["scores"].dtype)], -1
    )
    keys, values = torch.cat([state["keys"], key], 2), torch.cat([state["values"], v], 2)
    n = keys.shape[2]
    index = top_w(scores, min(heads.options.window, n))
    taken = index[..., -1] == n - 1
    flat = index.flatten(2)[..., None].expand(-1, -1, -1, q.shape[-1])
    near_keys, near_values = (t.gather(2, flat).unflatten(2, index.shape[2:]) for t in (keys, values))
    seen = torch.ones_like(index, dtype=torch.bool)
    if heads.options.convention.mask_self and index.shape[-1] > 1:
        seen = index != n - 1
    every = query[:, :, None].expand(-1, -1, index.shape[2], -1, -1)
    distance = torch.arange(1 - index.shape[-1], 1, device=q.device).expand_as(index)
    out = _weigh(every, near_keys, near_values, seen, distance, heads.scale, heads.relative, index.shape[-1])
    hits = taken.sum(-1).to(out.dtype)[..., None]
    total = (out[..., 0, :] * taken[..., None]).sum(2)
    mean = total / (hits + heads.options.convention.hits_eps)
    return mean[:, :, None], {"keys": keys, "values": values, "scores": scores}


def _prepared(
    heads: RoutingHeads, q: Tensor, k: Tensor | None, v: Tensor, position: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Query and key as they are compared, and the cluster."""
    vectors = heads.vectors(q, k)
    turn = torch.tensor([position], device=q.device)
    query, key = (heads.turned(t, turn).to(v.dtype) for t in (vectors.queries, vectors.keys))
    return query, key, heads.kmeans.assign(vectors.route)


def _written(ring: Tensor, slot: Tensor, new: Tensor) -> Tensor:
    return ring.scatter(2, slot[..., None].expand_as(new), new.to(ring.dtype))


def _weigh(
    query: Float[Tensor, "*batch 1 dim"],
    keys: Float[Tensor, "*batch m dim"],
    values: Float[Tensor, "*batch m dim"],
    seen: Tensor,
    distance: Tensor,
    scale: float,
    relative: RelativeTables | None,
    reach: int,
) -> Float[Tensor, "*batch 1 dim"]:
    """One query over a few keys. seen and distance: (*batch, m)."""
    exact = torch.promote_types(query.dtype, torch.float32)
    scores = (query @ keys.to(query.dtype).transpose(-1, -2)).to(exact) * scale
    if relative is not None:
        scores = scores + relative.scores(query, distance[..., None, :], reach) * scale
    weights = scores.masked_fill(~seen[..., None, :], -torch.inf).softmax(-1).to(query.dtype)
    out = weights @ values.to(query.dtype)
    return out if relative is None else out + relative.outputs(weights, distance[..., None, :], reach)
