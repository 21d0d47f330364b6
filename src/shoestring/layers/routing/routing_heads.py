"""Routing heads: attention of each head inside clusters that online k-means finds, without projections.

Source: Roy et al. 2021, "Efficient Content-Based Sparse Attention with Routing Transformers", section 4.1.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from shoestring.layers.kmeans import OnlineKMeans, check_finite
from shoestring.layers.local_attention import check_valid
from shoestring.layers.rotary import Rope, rotate_heads
from shoestring.layers.routing.cluster_attention import cluster_attention
from shoestring.layers.routing.relative_tables import RelativeTables
from shoestring.layers.routing.routing_options import RoutingOptions, unit_length
from shoestring.layers.routing.top_w_attention import cluster_scores, top_w, top_w_attention
from shoestring.notices import notice_fallback


class Routed(NamedTuple):
    """What routing gives.

    commitment: mean |x − mu_c|², to be added to the loss times beta (1e-4 in the paper); 0 in eval mode.
    unrouted_fraction: tokens that no cluster took: about 1/e at the start in top-w mode, none in strict mode.
    """

    out: Tensor
    commitment: Float[Tensor, ""]
    unrouted_fraction: Float[Tensor, ""]


class Vectors(NamedTuple):
    """Normalised vectors that route, and the queries and keys that are compared."""

    route: Float[Tensor, "batch heads n dim"]
    route_keys: Float[Tensor, "batch heads m dim"] | None
    queries: Float[Tensor, "batch heads n dim"]
    keys: Float[Tensor, "batch heads m dim"]


class RoutingHeads(nn.Module):
    """(q, k, v) -> `Routed`, each (batch, heads, n, head_dim); k is None where q and k are shared.

    With `memory=True` keys and values come from elsewhere, e.g. an encoder, and are routed by the same
    centroids. relative: tables over ranks inside a cluster. rope: rotary on true positions instead.

    Raises: ValueError for combinations that are wrong: causal top-w with keys of their own (masks by rank
    would be wrong), shared q and k with a memory, a causal memory, strict mode that is not causal, or both
    kinds of positions.
    """

    def __init__(
        self,
        n_heads: int,
        head_dim: int,
        options: RoutingOptions,
        *,
        causal: bool = True,
        memory: bool = False,
        relative: RelativeTables | None = None,
        rope: Rope | None = None,
    ) -> None:
        super().__init__()
        check_combination(options, causal, memory)
        if relative is not None and rope is not None:
            raise ValueError("relative tables and rotary positions exclude each other; give one.")
        self.options, self.causal, self.memory = options, causal, memory
        self.n_heads, self.head_dim = n_heads, head_dim
        self.relative, self.rope = relative, rope
        self.scale = head_dim**-0.5 if options.routing_scale == "rsqrt" else 1.0
        self.kmeans = OnlineKMeans(
            options.n_clusters,
            head_dim,
            n_heads=n_heads,
            options=options.kmeans,
            normalise=unit_length if options.convention.unit_centroids else None,
        )

    @property
    def leaks_future(self) -> bool:
        """Whether outputs depend on later tokens: top-w membership does, even under a causal mask."""
        return not self.causal or self.options.mode == "top-w"

    def forward(
        self,
        q: Float[Tensor, "batch heads n dim"],
        k: Float[Tensor, "batch heads m dim"] | None,
        v: Float[Tensor, "batch heads m dim"],
        valid: Bool[Tensor, "batch n"] | None = None,
        memory_valid: Bool[Tensor, "batch m"] | None = None,
    ) -> Routed:
        """valid: tokens that are no padding. Raises: ValueError for shared q and k with a k, a missing k, a
        sequence of padding only, or q that is not finite; RuntimeError in eval mode before any training."""
        if (k is None) != self.options.share_qk:
            raise ValueError(
                f"share_qk={self.options.share_qk} takes {'no' if self.options.share_qk else 'a'} k."
            )
        for mask in (valid, memory_valid):
            if mask is not None:
                check_valid(mask)
        self.kmeans.check_ready()
        check_finite(q)
        vectors = self.vectors(q, k)
        key_valid = memory_valid if self.memory else valid
        cluster, commitment = self._learn(vectors, valid, key_valid)
        position = torch.arange(q.shape[2], device=q.device)
        key_position = torch.arange(vectors.keys.shape[2], device=q.device)
        queries = self.turned(vectors.queries, position).to(v.dtype)
        keys = queries
        if vectors.keys is not vectors.queries:
            keys = self.turned(vectors.keys, key_position).to(v.dtype)
        if cluster is not None and self.options.mode == "strict":
            out = cluster_attention(
                queries, keys, v, cluster, self.options.n_clusters, self.options.window, scale=self.scale,
                mask_self=self.options.convention.mask_self, valid=valid, relative=self.relative,
            )  # fmt: skip
            return Routed(out, commitment, commitment.new_zeros(()))
        out, hits = self._top_w(vectors, queries, keys, v, valid, key_valid)
        missed = hits == 0
        unrouted = missed if valid is None else missed.masked_select(valid[:, None])
        return Routed(out, commitment, unrouted.to(commitment.dtype).mean())

    def init_centroids(
        self, q: Float[Tensor, "batch heads n dim"] | None = None, iterations: int = 10
    ) -> None:
        """Start from random tokens and k-means; without q from noise. Raises: as `OnlineKMeans`."""
        self.kmeans.init_centroids(None if q is None else self.options.convention.normalise(q), iterations)

    def vectors(self, q: Tensor, k: Tensor | None) -> Vectors:
        """What routes and what is compared, by the convention of the options."""
        convention = self.options.convention
        route = convention.normalise(q)
        queries = q if convention.raw_queries else route
        if k is None:
            return Vectors(route, None, queries, route)
        route_keys = convention.normalise(k)
        keys = k if convention.raw_queries else route_keys
        return Vectors(route, route_keys if self.options.mode == "top-w" else None, queries, keys)

    def turned(
        self, x: Float[Tensor, "batch heads n dim"], position: Int[Tensor, " n"]
    ) -> Float[Tensor, "batch heads n dim"]:
        """x turned by the rotary angles of its positions; x itself without rope."""
        return x if self.rope is None else rotate_heads(x, position, self.rope)

    def _learn(
        self, vectors: Vectors, valid: Tensor | None, key_valid: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        """The clusters of the tokens, where needed, and the commitment loss; in training, k-means learns."""
        if not self.training:
            cluster = self.kmeans.assign(vectors.route) if self.options.mode == "strict" else None
            return cluster, vectors.route.new_zeros(())
        cluster, loss = self._observe(vectors.route, valid)
        if vectors.route_keys is None:
            return cluster, loss
        return cluster, (loss + self._observe(vectors.route_keys, key_valid)[1]) / 2

    def _observe(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        cluster = self.kmeans.assign(x)
        self.kmeans.observe(x, cluster, valid)
        return cluster, self.kmeans.commitment(x, cluster, valid)

    def _top_w(
        self,
        vectors: Vectors,
        queries: Tensor,
        keys: Tensor,
        v: Tensor,
        valid: Tensor | None,
        key_valid: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        convention, centroids = self.options.convention, self.kmeans.centroids
        rows = top_w(cluster_scores(vectors.route, centroids), self._window(queries.shape[2]), valid)
        columns = None
        if vectors.route_keys is not None:
            key_scores = cluster_scores(vectors.route_keys, centroids)
            columns = top_w(key_scores, self._window(keys.shape[2]), key_valid)
        return top_w_attention(
            queries, keys, v, rows, columns, scale=self.scale, causal=self.causal,
            mask_self=convention.mask_self and self.options.share_qk, valid=valid, memory_valid=key_valid,
            relative=self.relative, hits_eps=convention.hits_eps,
        )  # fmt: skip

    def _window(self, n: int) -> int:
        window = self.options.window
        if window > n:
            notice_fallback(
                "routing heads", f"window={window} is more than the {n} tokens; each cluster takes all"
            )
        return min(window, n)


def check_combination(options: RoutingOptions, causal: bool, memory: bool) -> None:
    """Raises: ValueError for options that do not go together, saying what does."""
    if memory and causal:
        raise ValueError("a memory has no order relative to the queries; use causal=False.")
    if memory and options.share_qk:
        raise ValueError("share_qk=True with a memory: its keys are not the queries; use share_qk=False.")
    if not causal and options.mode == "strict":
        raise ValueError("mode='strict' is causal; use mode='top-w' where tokens may look ahead.")
    if causal and options.mode == "top-w" and not options.share_qk:
        raise ValueError(
            "causal top-w with keys of their own: queries and keys of a cluster are other tokens; use "
            "share_qk=True or mode='strict'."
        )
