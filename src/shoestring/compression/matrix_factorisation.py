"""Matrices as products with a nonnegative factor, by multiplicative updates that never make it worse."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

TINY = 1e-12
"""Added below a fraction line."""

START = 0.2
"""Added to the indicators of clusters, so that an update can move every entry."""

CLUSTER_STEPS = 10


def nmf_iterates(
    a: Float[Tensor, "rows cols"], rank: int, iterations: int, generator: torch.Generator
) -> Iterator[tuple[Float[Tensor, "rows rank"], Float[Tensor, "rank cols"]]]:
    """(L, R) ≥ 0 with L R ≈ A: the start, then one pair an iteration. A must not be negative.

    Source: Lee and Seung 2001, "Algorithms for Non-negative Matrix Factorization", theorem 1.
    """
    rows, cols = a.shape
    scale = (a.mean() / rank).sqrt()
    made: dict[str, Any] = {"generator": generator, "device": a.device, "dtype": a.dtype}
    left, right = (2 * scale * torch.rand(*shape, **made) for shape in ((rows, rank), (rank, cols)))
    yield left, right
    for _ in range(iterations):
        right = right * (left.T @ a) / (left.T @ left @ right + TINY)
        left = left * (a @ right.T) / (left @ (right @ right.T) + TINY)
        yield left, right


def semi_nmf_iterates(
    a: Float[Tensor, "rows cols"], rank: int, iterations: int, generator: torch.Generator
) -> Iterator[tuple[Float[Tensor, "rows rank"], Float[Tensor, "cols rank"]]]:
    """(F, G) with G ≥ 0 and F Gᵀ ≈ A: the start, then one pair an iteration. F is the best for its G.

    Source: Ding et al. 2010, "Convex and Semi-Nonnegative Matrix Factorizations", section 3.1.
    """
    exact = a.double()
    g = _cluster_indicators(exact.T, rank, generator) + START
    f = _best_left(exact, g)
    yield f.to(a.dtype), g.to(a.dtype)
    for _ in range(iterations):
        af, ff = exact.T @ f, f.T @ f
        up = af.clamp(min=0) + g @ (-ff).clamp(min=0)
        down = (-af).clamp(min=0) + g @ ff.clamp(min=0)
        g = g * (up / (down + TINY)).sqrt()
        f = _best_left(exact, g)
        yield f.to(a.dtype), g.to(a.dtype)


def _best_left(a: Tensor, g: Tensor) -> Tensor:
    """A G (Gᵀ G)⁻¹, also where clusters coincide."""
    return a @ g @ torch.linalg.pinv(g.T @ g, hermitian=True)


def _cluster_indicators(
    points: Float[Tensor, "points dim"], count: int, generator: torch.Generator
) -> Float[Tensor, "points count"]:
    """1 where a point belongs to a cluster: k-means of Lloyd from points drawn as centres."""
    order = torch.randperm(len(points), generator=generator, device=points.device)
    centres = points[order[torch.arange(count, device=points.device) % len(points)]]
    for _ in range(CLUSTER_STEPS):
        nearest = torch.cdist(points, centres).argmin(1)
        member = torch.nn.functional.one_hot(nearest, count).to(points.dtype)
        size = member.sum(0)
        means = member.T @ points / size.clamp(min=1)[:, None]
        centres = torch.where(size[:, None] > 0, means, centres)
    return member
