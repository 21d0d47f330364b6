"""Routing heads: attention of each head inside clusters that online k-means finds, without projections.

Source: Roy et al. 2021, "Efficient Content-Based Sparse Attention with Routing Transformers", section 4.1.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from shoestring.layers.content_routing import strict_attention, top_w, top_w_attention
from shoestring.layers.kmeans import OnlineKMeans, check_finite
from shoestring.layers.local_attention import check_valid
from shoestring.layers.relative_tables import RelativeTables
from shoestring.layers.rotary import Rope, rotate
from shoestring.layers.routing_options import RoutingOptions, unit_length
from shoestring.notices import notice_fallback


class Routed(NamedTuple):
    """out; commitment: mean |x − mu_c|², to be added to the loss times beta (1e-4 in the paper);
    unrouted_fraction: tokens that no cluster took (about 1/e at the start, in top-w mode; none in strict)."""

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
    would be wrong), shared q and k with a memory, a causal memory, strict mode with a memory, or both kinds
    of positions.
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
        scores = self.kmeans.scores(vectors.route)
        key_scores = None if vectors.route_keys is None else self.kmeans.scores(vectors.route_keys)
        commitment = self._learn(vectors, scores, key_scores, valid, memory_valid if self.memory else valid)
        queries, keys = vectors.queries, vectors.keys
        if self.rope is not None:
            position = torch.arange(q.shape[2], device=q.device)
            queries, keys = self.turned(queries, position), self.turned(keys, position)
        queries, keys = queries.to(v.dtype), keys.to(v.dtype)
        if self.options.mode == "strict":
            return self._strict(queries, keys, v, scores, valid, commitment)
        return self._top_w(queries, keys, v, scores, key_scores, valid, memory_valid, commitment)

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
        if self.rope is None:
            return x
        cos, sin = self.rope.tables(position[None], self.head_dim, torch.float32)
        return rotate(x.transpose(1, 2), cos.to(x.dtype), sin.to(x.dtype)).transpose(1, 2)

    def _learn(
        self,
        vectors: Vectors,
        scores: Tensor,
        key_scores: Tensor | None,
        valid: Tensor | None,
        key_valid: Tensor | None,
    ) -> Tensor:
        """Collect the batch for k-means in training; the commitment loss."""
        pairs = [(vectors.route, scores, valid)]
        if vectors.route_keys is not None and key_scores is not None:
            pairs.append((vectors.route_keys, key_scores, key_valid))
        losses = []
        for x, found, mask in pairs:
            assignment = found.argmax(-2)
            if self.training:
                self.kmeans.observe(x.detach(), assignment, mask)
            losses.append(self.kmeans.commitment(x, assignment, mask))
        return torch.stack(losses).mean()

    def _strict(
        self,
        queries: Tensor,
        keys: Tensor,
        v: Tensor,
        scores: Tensor,
        valid: Tensor | None,
        commitment: Tensor,
    ) -> Routed:
        options = self.options
        out = strict_attention(
            queries, keys, v, scores.argmax(-2), options.n_clusters, options.window, scale=self.scale,
            causal=self.causal, mask_self=options.convention.mask_self, valid=valid, relative=self.relative,
        )  # fmt: skip
        return Routed(out, commitment, commitment.new_zeros(()))

    def _top_w(
        self,
        queries: Tensor,
        keys: Tensor,
        v: Tensor,
        scores: Tensor,
        key_scores: Tensor | None,
        valid: Tensor | None,
        memory_valid: Tensor | None,
        commitment: Tensor,
    ) -> Routed:
        options = self.options
        key_valid = memory_valid if self.memory else valid
        rows = top_w(scores, self._window(queries.shape[2]), valid)
        columns = None
        if key_scores is not None:
            columns = top_w(key_scores, self._window(keys.shape[2]), key_valid)
        out, hits = top_w_attention(
            queries, keys, v, rows, columns, scale=self.scale, causal=self.causal,
            mask_self=options.convention.mask_self and not self.memory and options.share_qk,
            valid=valid, memory_valid=key_valid, relative=self.relative, hits_eps=options.convention.hits_eps,
        )  # fmt: skip
        missed = hits == 0
        unrouted = missed if valid is None else missed.masked_select(valid[:, None])
        return Routed(out, commitment, unrouted.to(commitment.dtype).mean())

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
    if memory and options.mode == "strict":
        raise ValueError("mode='strict' orders the tokens of one sequence; use mode='top-w' with a memory.")
    if causal and options.mode == "top-w" and not options.share_qk:
        raise ValueError(
            "causal top-w with keys of their own: queries and keys of a cluster are other tokens; use "
            "share_qk=True or mode='strict'."
        )
