"""Clusters of consecutive cached keys, their bounds, and which of them a query should read.

rmax_i = max over the cluster of k_i, rmin_i likewise; Sim(q, c) = q · (α rmax + (1 − α) rmin), which is
linear in
q. Coarse clusters are chosen first, then fine ones among their children; the first and the last always count.

Source: Zeng et al. 2025, "MPCache: MPC-Friendly KV Cache Eviction for Efficient Private Large Language Model
Inference", sections 4.2 and 4.3; the bound Σ max(q_i rmax_i, q_i rmin_i) is that of Tang et al. 2024,
"Quest".
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Scorer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q (…, d), rmin (…, n, d), rmax (…, n, d)) -> scores (…, n)."""


@dataclass(frozen=True)
class ClusterPlan:
    """What is public of a selection over `tokens` cached tokens.

    coarse, fine: numbers of clusters; keep_coarse: chosen beside the first and the last; keep_fine: chosen
    among the candidates. always: fine clusters that are candidates whatever was chosen, ascending.
    """

    tokens: int
    children: int
    fine_size: int
    coarse: int
    fine: int
    keep_coarse: int
    keep_fine: int
    always: tuple[int, ...]

    @property
    def candidates(self) -> int:
        """Fine clusters that the second choice is among."""
        return self.children * self.keep_coarse + len(self.always)

    @property
    def all_coarse(self) -> bool:
        """Whether the first choice takes everything."""
        return len(self.always) == self.fine - 2

    @property
    def tail(self) -> int:
        """Tokens of the last fine cluster."""
        return self.tokens - (self.fine - 1) * self.fine_size

    @property
    def attended(self) -> int:
        """Tokens that are read."""
        return (self.keep_fine + 1) * self.fine_size + self.tail


@dataclass(frozen=True)
class ClusterOptions:
    """alpha: weight of the upper bound. rho_coarse, rho_fine: shares of clusters to choose at each level.
    coarse, fine: tokens of a cluster.

    The order of the paper's numbers: α = 0.6; ρ1 = 0.5, ρ2 = 0.2 (0.12 keeps still less); 32 and 16 tokens.
    Raises: ValueError for alpha outside [0, 1], a share outside (0, 1], or sizes that do not nest.
    """

    alpha: float = 0.6
    rho_coarse: float = 0.5
    rho_fine: float = 0.2
    coarse: int = 32
    fine: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} weighs two bounds; it must be from 0 to 1.")
        for name in ("rho_coarse", "rho_fine"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} is a share of clusters; it must be in (0, 1]."
                )
        if self.fine < 1 or self.coarse % self.fine:
            raise ValueError(
                f"coarse={self.coarse} must be a multiple of fine={self.fine}, e.g. {2 * max(self.fine, 1)}."
            )

    def plan(self, tokens: int) -> ClusterPlan | None:
        """The public numbers for so many tokens; None where there are too few to choose from: read all."""
        if tokens < 2 * self.coarse:
            return None
        children = self.coarse // self.fine
        coarse, fine = -(-tokens // self.coarse), -(-tokens // self.fine)
        keep_coarse = min(int(self.rho_coarse * coarse), coarse - 2)
        outer = [*range(1, children), *range(children * (coarse - 1), fine - 1)]
        always = tuple(sorted({c for c in outer if 0 < c < fine - 1}))
        if keep_coarse == coarse - 2:
            # All clusters are candidates: there is no first choice to make.
            keep_coarse, always = 0, tuple(range(1, fine - 1))
        keep_fine = min(int(self.rho_fine * fine), children * keep_coarse + len(always))
        return ClusterPlan(tokens, children, self.fine, coarse, fine, keep_coarse, keep_fine, always)


def cluster_bounds(
    k: Float[Tensor, "*rows tokens dim"], size: int
) -> tuple[Float[Tensor, "*rows n dim"], Float[Tensor, "*rows n dim"]]:
    """(rmin, rmax) of clusters of `size` consecutive tokens; the last one may be partial."""
    missing = -k.shape[-2] % size
    if missing:
        # A token of the same cluster once more changes neither bound.
        k = torch.cat([k, k[..., -1:, :].expand(*k.shape[:-2], missing, -1)], -2)
    return k.unflatten(-2, (-1, size)).aminmax(dim=-2)


class LinearSimilarity:
    """q · (α rmax + (1 − α) rmin): no comparison, and the factor of q is known before q is."""

    def __init__(self, alpha: float = 0.6) -> None:
        self.alpha = alpha

    def __call__(self, q: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return ((self.alpha * high + (1 - self.alpha) * low) @ q[..., None])[..., 0]


def quest_bound(q: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Σ_i max(q_i rmax_i, q_i rmin_i): no key of the cluster has a larger product with q."""
    return torch.maximum(q[..., None, :] * low, q[..., None, :] * high).sum(-1)


class RandomScores:
    """The control: clusters by chance."""

    def __init__(self, seed: int | torch.Generator = 0) -> None:
        self.generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)

    def __call__(self, q: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.rand(low.shape[:-1], generator=self.generator)


class InvertedScores:
    """Another scorer upside down: the control that should be the worst."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def __call__(self, q: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return -self.scorer(q, low, high)


def choose_clusters(
    q: Float[Tensor, "*rows dim"],
    low: Float[Tensor, "*rows fine dim"],
    high: Float[Tensor, "*rows fine dim"],
    plan: ClusterPlan,
    scorer: Scorer,
) -> Bool[Tensor, "*rows fine"]:
    """Which fine clusters each row reads, from the bounds of all fine clusters."""
    candidate = torch.zeros(low.shape[:-1], dtype=torch.bool)
    candidate[..., list(plan.always)] = True
    if not plan.all_coarse:
        inner = slice(plan.children, plan.children * (plan.coarse - 1))
        grouped = [x[..., inner, :].unflatten(-2, (-1, plan.children)) for x in (low, high)]
        scores = scorer(q, grouped[0].amin(-2), grouped[1].amax(-2))
        chosen = _top(scores, plan.keep_coarse)
        candidate[..., inner] = chosen.repeat_interleave(plan.children, -1)
    kept = _top(scorer(q, low, high).masked_fill(~candidate, -torch.inf), plan.keep_fine)
    kept[..., 0] = kept[..., -1] = True
    return kept


def chosen_slots(clusters: Bool[Tensor, "*rows fine"], plan: ClusterPlan) -> Int[Tensor, "*rows m"]:
    """The slots of the chosen clusters, ascending: equally many in every row."""
    tokens = clusters.repeat_interleave(plan.fine_size, -1)[..., : plan.tokens]
    return tokens.nonzero()[:, -1].reshape(*clusters.shape[:-1], plan.attended)


def mpcache_select(
    q: Float[Tensor, "kv_heads dim"],
    k: Float[Tensor, "kv_heads tokens dim"],
    options: ClusterOptions = ClusterOptions(),
) -> Bool[Tensor, "kv_heads tokens"]:
    """Which tokens each KV head reads, step by step and head by head: the meaning of `choose_clusters`.

    q: the sum of the queries of the heads that share a KV head.
    """
    plan = options.plan(k.shape[1])
    mask = torch.ones(k.shape[:2], dtype=torch.bool)
    if plan is None:
        return mask
    scorer = LinearSimilarity(options.alpha)
    for head in range(k.shape[0]):
        coarse, fine = (
            scorer(q[head], *cluster_bounds(k[head], size)).tolist()
            for size in (options.coarse, options.fine)
        )
        inner = sorted(range(1, plan.coarse - 1), key=lambda c: (-coarse[c], c))
        chosen = inner if plan.all_coarse else inner[: plan.keep_coarse]
        parents = {0, plan.coarse - 1, *chosen}
        candidates = [c for c in range(1, plan.fine - 1) if c // plan.children in parents]
        kept = sorted(candidates, key=lambda c: (-fine[c], c))[: plan.keep_fine]
        for c in set(range(plan.fine)) - {0, plan.fine - 1, *kept}:
            mask[head, c * options.fine : (c + 1) * options.fine] = False
    return mask


class ClusterTable:
    """Bounds of the fine clusters of one layer's cache, kept in step with it: only the newest is renewed."""

    def __init__(self, size: int) -> None:
        self.size, self.tokens = size, 0
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def follow(self, k: Float[Tensor, "batch kv_heads tokens dim"]) -> None:
        """Take over what was appended, or rolled back, since the last call. Evictions need a new table."""
        start = min(self.tokens, k.shape[2]) // self.size
        low, high = cluster_bounds(k[:, :, start * self.size :], self.size)
        if self.low is None or self.high is None or start == 0:
            self.low, self.high = low, high
        else:
            self.low = torch.cat([self.low[:, :, :start], low], 2)
            self.high = torch.cat([self.high[:, :, :start], high], 2)
        self.tokens = k.shape[2]


def _top(scores: Tensor, count: int) -> Tensor:
    """The `count` largest of each row, of equal ones the earlier."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, True)
