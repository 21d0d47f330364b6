"""What a routing head may be told: clusters, who belongs to them, and how vectors are normalised."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from shoestring.layers.kmeans import KMeansOptions


def layer_normalised(x: Tensor) -> Tensor:
    """Mean 0 and norm √dim, without scale or bias; at least in float32."""
    return F.layer_norm(x.float() if x.element_size() < 4 else x, x.shape[-1:], eps=1e-6)


def unit_length(x: Tensor) -> Tensor:
    """Norm 1; at least in float32."""
    return F.normalize(x.float() if x.element_size() < 4 else x, dim=-1)


@dataclass(frozen=True)
class VectorConvention:
    """How queries and keys are prepared.

    normalise: what routes, and what shared keys are. raw_queries: queries stay as projected when scores are
    taken, and so do keys that are not shared. unit_centroids: centroids are brought to length 1. mask_self: a
    token sees itself only where it sees nothing else. hits_eps: outputs are divided by the number of clusters
    that took the token + hits_eps.
    """

    normalise: Callable[[Tensor], Tensor]
    raw_queries: bool
    unit_centroids: bool
    mask_self: bool
    hits_eps: float


LAYER_NORM = VectorConvention(layer_normalised, False, False, False, 1e-2)
"""The authors' code."""
UNIT_LENGTH = VectorConvention(unit_length, True, True, True, 1e-5)
"""The well-known rewrite in PyTorch (the package routing-transformer)."""


@dataclass(frozen=True)
class RoutingOptions:
    """One kind of routing head.

    n_clusters: k. window: w, tokens of a cluster that attend to each other; `sizes_for` gives the paper's
    defaults for both. mode: "strict" reads the past only; "top-w", the paper's, leaks the future even where
    it is causal, and suits encoders. share_qk: keys are the queries. routing_scale: "rsqrt" multiplies scores
    by dim^-0.5; "none", of the authors' code with `LAYER_NORM`, leaves them within ± dim, where a token that
    shares q and k sees little but itself.

    Raises: ValueError for counts below 1 or an unknown mode or scale.
    """

    n_clusters: int
    window: int
    mode: str = "strict"
    share_qk: bool = True
    routing_scale: str = "rsqrt"
    convention: VectorConvention = LAYER_NORM
    kmeans: KMeansOptions = field(default_factory=KMeansOptions)

    def __post_init__(self) -> None:
        for name in ("n_clusters", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more.")
        for name, known in (("mode", ("strict", "top-w")), ("routing_scale", ("rsqrt", "none"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is not known; use {' or '.join(known)}.")

    @staticmethod
    def sizes_for(n: int) -> tuple[int, int]:
        """k = round(√n) and w = n // k, where the cost n·k + n·w is least.

        Raises: ValueError for n below 1.
        """
        if n < 1:
            raise ValueError(f"n={n} must be 1 or more.")
        n_clusters = round(n**0.5)
        return n_clusters, n // n_clusters
