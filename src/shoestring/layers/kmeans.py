"""Online k-means: centroids that follow the data by moving averages, for routing and for codebooks.

For each batch, with x_i assigned to centroid c(i) and decay g:
count_c <- g·count_c + (1 − g)·|{i: c(i) = c}|,  sum_c <- g·sum_c + (1 − g)·Σ_{c(i) = c} x_i,
mu_c = sum_c / smoothed count_c, smoothed = (count_c + eps) / (Σ count + k·eps) · Σ count.

Source: van den Oord et al. 2017, "Neural Discrete Representation Learning", appendix A.1 (moving averages);
Roy et al. 2021, "Efficient Content-Based Sparse Attention with Routing Transformers", section 4.2.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

Score = Callable[
    [Float[Tensor, "*batch heads n dim"], Float[Tensor, "heads clusters dim"]],
    Float[Tensor, "*batch heads n clusters"],
]
"""How near each token is to each centroid: the highest is its own."""


def dot_scores(
    x: Float[Tensor, "*batch heads n dim"], centroids: Float[Tensor, "heads clusters dim"]
) -> Float[Tensor, "*batch heads n clusters"]:
    """mu·x: nearest by angle, where centroids have equal norms."""
    return x @ centroids.transpose(-1, -2)


def distance_scores(
    x: Float[Tensor, "*batch heads n dim"], centroids: Float[Tensor, "heads clusters dim"]
) -> Float[Tensor, "*batch heads n clusters"]:
    """−|x − mu|² + |x|²: nearest by distance, as codebooks need it."""
    return 2 * dot_scores(x, centroids) - centroids.square().sum(-1)[..., None, :]


@dataclass(frozen=True)
class KMeansOptions:
    """decay: g. eps: smoothing of counts. reseed_below: a cluster whose count falls under this share of the
    mean count starts afresh at a random token of the batch (our remedy for dead clusters: its centroid would
    be a quotient of two vanishing numbers); 0 leaves it. seed: of the tokens drawn, there and at the start.

    Raises: ValueError for a decay outside [0, 1), eps ≤ 0, or reseed_below outside [0, 1).
    """

    decay: float = 0.999
    eps: float = 1e-5
    reseed_below: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("decay", "reseed_below"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and below 1.")
        if not self.eps > 0:
            raise ValueError(f"eps={self.eps} must be above 0.")


@dataclass
class _Pending:
    """What the batches since the last update add up to, and tokens that may become centroids."""

    counts: Float[Tensor, "heads clusters"]
    sums: Float[Tensor, "heads clusters dim"]
    candidates: Float[Tensor, "heads clusters dim"]


class OnlineKMeans(nn.Module):
    """`n_clusters` centroids for each head, in float32, without gradients.

    `observe` collects a batch in training; `update` moves the centroids, once per optimizer step
    (`update_after_step` sees to it). Centroids start as layer-normalised noise with count 1 and sum = mu;
    a start from tokens is `init_centroids`. Buffers (centroids, counts, sums, updates) are saved with the
    model. score: `dot_scores` or `distance_scores`. normalise: what is done to centroids after each change,
    e.g. unit length.

    Raises: ValueError for counts below 1.
    """

    centroids: Tensor
    counts: Tensor
    sums: Tensor
    updates: Tensor

    def __init__(
        self,
        n_clusters: int,
        dim: int,
        *,
        n_heads: int = 1,
        options: KMeansOptions | None = None,
        score: Score = dot_scores,
        normalise: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("n_clusters", n_clusters), ("dim", dim), ("n_heads", n_heads)):
            if value < 1:
                raise ValueError(f"{name}={value} must be 1 or more.")
        self.n_clusters, self.dim, self.n_heads = n_clusters, dim, n_heads
        self.options = options or KMeansOptions()
        self.score, self.normalise = score, normalise
        noise = torch.randn(n_heads, n_clusters, dim, generator=self._generator(0))
        self.register_buffer("centroids", self._normalised(F.layer_norm(noise, (dim,))))
        self.register_buffer("counts", torch.ones(n_heads, n_clusters))
        self.register_buffer("sums", self.centroids.clone())
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self._pending: _Pending | None = None
        self._is_ready = False

    @property
    def is_ready(self) -> bool:
        """Whether the centroids come from data, or from noise that was asked for."""
        self._is_ready = self._is_ready or bool(self.updates > 0)
        return self._is_ready

    def check_ready(self) -> None:
        """Raises: RuntimeError in eval mode, where the centroids are still the noise of the constructor."""
        if not self.training and not self.is_ready:
            raise RuntimeError(
                "the centroids were neither trained nor initialised; call init_centroids(), load a state, or "
                "train with update_after_step(optimizer, model)."
            )

    def assign(self, x: Float[Tensor, "*batch heads n dim"]) -> Int[Tensor, "*batch heads n"]:
        """The centroid of each token; scores are taken at least in float32, as ties are common below.

        Raises: ValueError for x that is not finite.
        """
        check_finite(x)
        exact = torch.promote_types(x.dtype, torch.float32)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return self.score(x.to(exact), self.centroids.to(exact)).argmax(-1)

    def commitment(
        self,
        x: Float[Tensor, "batch heads n dim"],
        assignment: Int[Tensor, "batch heads n"],
        valid: Bool[Tensor, "batch n"] | None = None,
    ) -> Float[Tensor, ""]:
        """mean |x − mu_c|² over tokens, heads and channels: pulls x to its centroid."""
        nearest = self.centroids.gather(1, _rows(assignment, self.dim)).unflatten(1, (-1, x.shape[-2]))
        squares = (x.to(nearest.dtype) - nearest.transpose(0, 1)).square()
        if valid is None:
            return squares.mean()
        return squares.mean((1, 3)).masked_select(valid).mean()

    @torch.no_grad()
    def observe(
        self,
        x: Float[Tensor, "batch heads n dim"],
        assignment: Int[Tensor, "batch heads n"],
        valid: Bool[Tensor, "batch n"] | None = None,
    ) -> None:
        """Collect a batch for the next update; several batches (accumulation, queries and keys) add up.

        A forward pass that runs again inside the backward pass, as checkpointing and reversible layers do,
        is not counted twice.
        """
        if torch._C._current_graph_task_id() != -1:
            return
        tokens = x.transpose(0, 1).flatten(1, 2).to(self.sums.dtype)
        index = assignment.transpose(0, 1).flatten(1)
        weight = torch.ones_like(tokens[..., 0])
        if valid is not None:
            weight = weight * valid.flatten()
        counts, sums = self._totals(tokens, index, weight)
        if self._pending is None:
            self._pending = _Pending(counts, sums, self._draw(tokens, valid))
        else:
            self._pending.counts += counts
            self._pending.sums += sums

    @torch.no_grad()
    def update(self) -> None:
        """Move the centroids by what was observed since the last update; nothing, if nothing was.

        Where torch.distributed is initialised every process must call it: counts and sums are added up.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(pending.counts)
            distributed.all_reduce(pending.sums)
            distributed.broadcast(pending.candidates, 0)
        decay = self.options.decay
        self.counts.lerp_(pending.counts, 1 - decay)
        self.sums.lerp_(pending.sums, 1 - decay)
        self._reseed(pending.candidates)
        smoothed = smoothed_counts(self.counts, self.options.eps)
        self.centroids.copy_(self._normalised(self.sums / smoothed[..., None]))
        self.updates += 1

    @torch.no_grad()
    def init_centroids(
        self, x: Float[Tensor, "batch heads n dim"] | None = None, iterations: int = 10
    ) -> None:
        """Start from `n_clusters` random tokens of each head and iterations of k-means; without x, from the
        constructor's noise. Counts become 1.

        Raises: ValueError for fewer tokens than clusters, x that is not finite, or negative iterations.
        """
        if iterations < 0:
            raise ValueError(f"iterations={iterations} must be 0 or more.")
        if x is not None:
            check_finite(x)
            tokens = x.transpose(0, 1).flatten(1, 2).to(self.sums.dtype)
            if tokens.shape[1] < self.n_clusters:
                raise ValueError(
                    f"x has {tokens.shape[1]} tokens a head, fewer than n_clusters={self.n_clusters}."
                )
            self.centroids.copy_(self._normalised(self._draw(tokens, None)))
            for _ in range(iterations):
                self._iterate(tokens)
        self.sums.copy_(self.centroids)
        self.counts.fill_(1.0)
        self.updates += 1

    def _iterate(self, tokens: Float[Tensor, "heads n dim"]) -> None:
        """One iteration of Lloyd: every centroid to the mean of its tokens, if it has any."""
        index = self.score(tokens, self.centroids).argmax(-1)
        counts, sums = self._totals(tokens, index, torch.ones_like(tokens[..., 0]))
        means = self._normalised(sums / counts.clamp(min=1)[..., None])
        self.centroids.copy_(torch.where(counts[..., None] > 0, means, self.centroids))

    def _totals(
        self,
        tokens: Float[Tensor, "heads n dim"],
        index: Int[Tensor, "heads n"],
        weight: Float[Tensor, "heads n"],
    ) -> tuple[Float[Tensor, "heads clusters"], Float[Tensor, "heads clusters dim"]]:
        """Count and sum of the tokens of each cluster."""
        counts = torch.zeros_like(self.counts).scatter_add_(1, index, weight)
        weighted = tokens * weight[..., None]
        sums = torch.zeros_like(self.sums).scatter_add_(1, index[..., None].expand_as(tokens), weighted)
        return counts, sums

    def _reseed(self, candidates: Float[Tensor, "heads clusters dim"]) -> None:
        mean = self.counts.mean(-1, keepdim=True)
        smoothed = smoothed_counts(self.counts, self.options.eps)
        dead = smoothed < self.options.reseed_below * mean
        self.counts.copy_(torch.where(dead, mean, self.counts))
        self.sums.copy_(torch.where(dead[..., None], candidates * mean[..., None], self.sums))

    def _draw(
        self, tokens: Float[Tensor, "heads n dim"], valid: Bool[Tensor, "batch n_each"] | None
    ) -> Float[Tensor, "heads clusters dim"]:
        """Random tokens of each head, different ones as far as there are enough."""
        generator = self._generator(1 + int(self.updates))
        picked = []
        for head in tokens:
            usable = head if valid is None else head[valid.flatten()]
            order = torch.randperm(len(usable), generator=generator).to(usable.device)
            picked.append(usable[order.repeat(-(-self.n_clusters // len(order)))[: self.n_clusters]])
        return torch.stack(picked)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "OnlineKMeans":
        # A model in half precision keeps its averages in float32: (1 - g) of a batch would round away.
        kept = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = getattr(self, name)
            if after.is_floating_point() and after.element_size() < 4:
                setattr(self, name, before.to(after.device))
        return self

    def _normalised(self, centroids: Tensor) -> Tensor:
        return centroids if self.normalise is None else self.normalise(centroids)

    def _generator(self, moment: int) -> torch.Generator:
        # Of (seed, updates) alone, so that a resumed run draws what an unbroken one would have.
        return torch.Generator().manual_seed(self.options.seed * 1_000_003 + moment)


def update_after_step(optimizer: torch.optim.Optimizer, model: nn.Module) -> RemovableHandle:
    """Call `update` of every `OnlineKMeans` in `model` after each step of the optimizer."""
    found = [module for module in model.modules() if isinstance(module, OnlineKMeans)]

    def update(*_: object) -> None:
        for module in found:
            module.update()

    return optimizer.register_step_post_hook(update)


def smoothed_counts(counts: Float[Tensor, "heads clusters"], eps: float) -> Float[Tensor, "heads clusters"]:
    """Counts none of which is zero, with the same sum."""
    total = counts.sum(-1, keepdim=True)
    return (counts + eps) / (total + counts.shape[-1] * eps) * total


def check_finite(x: Tensor) -> None:
    """Raises: ValueError for x with an infinity or what is no number."""
    if torch.compiler.is_compiling():
        return
    x = x.detach()
    # One pass; a sum of finite numbers may overflow, so only then is each looked at.
    total = x.sum(dtype=torch.promote_types(x.dtype, torch.float32))
    if not bool(total.isfinite()) and not bool(x.isfinite().all()):
        raise ValueError("the vectors to be clustered are not all finite; look for a rate that is too high.")


def naive_update(
    x: Float[Tensor, "batch heads n dim"],
    centroids: Float[Tensor, "heads clusters dim"],
    counts: Float[Tensor, "heads clusters"],
    sums: Float[Tensor, "heads clusters dim"],
    options: KMeansOptions,
    valid: Bool[Tensor, "batch n"] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Centroids, counts and sums after one batch, token by token, without revival of dead clusters."""
    new_counts, new_sums = options.decay * counts, options.decay * sums
    for sample in range(x.shape[0]):
        for head in range(x.shape[1]):
            for position in range(x.shape[2]):
                if valid is None or valid[sample, position]:
                    token = x[sample, head, position]
                    cluster = int((centroids[head] @ token).argmax())
                    new_counts[head, cluster] += 1 - options.decay
                    new_sums[head, cluster] += (1 - options.decay) * token
    total = new_counts.sum(-1, keepdim=True)
    smoothed = (new_counts + options.eps) / (total + counts.shape[1] * options.eps) * total
    return new_sums / smoothed[..., None], new_counts, new_sums


def _rows(assignment: Int[Tensor, "batch heads n"], dim: int) -> Int[Tensor, "heads tokens dim"]:
    return assignment.transpose(0, 1).flatten(1)[..., None].expand(-1, -1, dim)
