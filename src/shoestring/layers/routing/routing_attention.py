"""The attention layer of the Routing Transformer: some heads look at neighbours, some at clusters.

Source: Roy et al. 2021, "Efficient Content-Based Sparse Attention with Routing Transformers", section 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from shoestring.layers.local_attention import LocalPattern
from shoestring.layers.rotary import Rope
from shoestring.layers.routing.local_heads import LocalHeads
from shoestring.layers.routing.relative_tables import RelativeTables
from shoestring.layers.routing.routing_cache import (
    fill_strict,
    init_strict,
    init_top_w,
    strict_step,
    top_w_step,
)
from shoestring.layers.routing.routing_heads import Routed, RoutingHeads
from shoestring.layers.routing.routing_options import RoutingOptions
from shoestring.layers.state import State


@dataclass(frozen=True)
class HeadSplit:
    """How the heads of a layer are shared out. block: tokens of a local block; a local head sees its own and
    the one before (and after, in an encoder). routing: of the routing heads, None where there are none.
    positions: "tables" learns vectors for distances up to `max_relative_position`, counted in tokens in local
    heads and in ranks inside the cluster in routing heads; "rotary" turns queries and keys; "none" leaves
    positions to what stands around the layer.

    Raises: ValueError for negative counts, heads that do not add up, or an unknown kind of positions.
    """

    n_heads: int
    n_local_heads: int
    n_routing_heads: int
    block: int = 256
    routing: RoutingOptions | None = None
    positions: str = "rotary"
    max_relative_position: int = 257

    def __post_init__(self) -> None:
        if self.n_local_heads < 0 or self.n_routing_heads < 0 or self.n_heads < 1:
            raise ValueError(
                f"n_heads={self.n_heads}, n_local_heads={self.n_local_heads} and n_routing_heads="
                f"{self.n_routing_heads} must not be negative, and there must be a head."
            )
        if self.n_local_heads + self.n_routing_heads != self.n_heads:
            raise ValueError(
                f"n_local_heads={self.n_local_heads} and n_routing_heads={self.n_routing_heads} do not add "
                f"up to n_heads={self.n_heads}."
            )
        if (self.routing is None) != (self.n_routing_heads == 0):
            raise ValueError(
                f"routing={self.routing} with n_routing_heads={self.n_routing_heads}; give both."
            )
        if self.positions not in ("rotary", "tables", "none"):
            raise ValueError(f"positions={self.positions!r} is not known; use rotary, tables or none.")


class RoutingAttention(nn.Module):
    """x (batch, seq, dim) -> `Routed`: routing heads, then local heads, then the output projection.

    Raises: ValueError for a dim that n_heads does not divide; and as `RoutingHeads`.
    """

    def __init__(self, dim: int, split: HeadSplit, *, causal: bool = True) -> None:
        super().__init__()
        if dim % split.n_heads:
            raise ValueError(f"dim={dim} is not divided by n_heads={split.n_heads}.")
        self.split, self.causal, self.head_dim = split, causal, dim // split.n_heads
        shared = split.routing is not None and split.routing.share_qk
        self.n_key_heads = split.n_local_heads + (0 if shared else split.n_routing_heads)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, self.n_key_heads * self.head_dim, bias=False) if self.n_key_heads else None
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        rope = Rope() if split.positions == "rotary" else None
        self.routing, self.local = None, None
        if split.routing is not None:
            self.routing = RoutingHeads(
                split.n_routing_heads, self.head_dim, split.routing, causal=causal, rope=rope,
                relative=self._tables(),
            )  # fmt: skip
        if split.n_local_heads:
            pattern = LocalPattern(split.block, before=1, after=0 if causal else 1, causal=causal)
            self.local = LocalHeads(
                split.n_local_heads, self.head_dim, pattern, rope=rope, relative=self._tables()
            )

    @property
    def leaks_future(self) -> bool:
        """Whether outputs depend on later tokens, as those of top-w routing do even where it is causal."""
        return not self.causal or (self.routing is not None and self.routing.leaks_future)

    def forward(
        self, x: Float[Tensor, "batch seq dim"], valid: Bool[Tensor, "batch seq"] | None = None
    ) -> Routed:
        """valid: tokens that are no padding. Raises: as `RoutingHeads`."""
        (rq, rk, rv), (lq, lk, lv) = self._projected(x)
        outs = []
        commitment = unrouted = x.new_zeros((), dtype=torch.float32)
        if self.routing is not None:
            routed = self.routing(rq, rk, rv, valid)
            commitment, unrouted = routed.commitment, routed.unrouted_fraction
            outs.append(routed.out)
        if self.local is not None:
            outs.append(self.local(lq, lk, lv, valid))
        return Routed(self._joined(outs), commitment, unrouted)

    def init_centroids(self, x: Float[Tensor, "batch seq dim"] | None = None, iterations: int = 10) -> None:
        """Start from tokens of x and k-means, from noise without x. Raises: as `OnlineKMeans`."""
        if self.routing is not None:
            with torch.no_grad():
                self.routing.init_centroids(None if x is None else self._projected(x)[0][0], iterations)

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state before the first token. In top-w mode it grows with the tokens.

        Raises: ValueError for a layer that is not causal.
        """
        if not self.causal:
            raise ValueError("a layer that is not causal has no state; use causal=True.")
        dtype = dtype or self.to_v.weight.dtype
        state: dict[str, Tensor] = {"position": torch.zeros(batch, dtype=torch.long, device=device)}
        if self.routing is not None:
            init = init_strict if self.routing.options.mode == "strict" else init_top_w
            state |= _named("routing", init(self.routing, batch, device, dtype))
        if self.local is not None:
            state |= _named("local", self.local.init_state(batch, device, dtype))
        return state

    def prefill(
        self, x: Float[Tensor, "batch seq dim"], state: State
    ) -> tuple[Float[Tensor, "batch seq dim"], State]:
        """At once from an empty state in strict mode, else token by token: a top-w forward looks ahead."""
        strict = self.routing is None or self.routing.options.mode == "strict"
        if not strict or int(state["position"][0]) or x.shape[1] == 0:
            outs = []
            for token in x.unbind(1):
                out, state = self.step(token, state)
                outs.append(out)
            return torch.stack(outs, 1) if outs else x, state
        (rq, rk, rv), (_, lk, lv) = self._projected(x)
        new: dict[str, Tensor] = {"position": state["position"] + x.shape[1]}
        if self.routing is not None:
            new |= _named("routing", fill_strict(self.routing, rq, rk, rv, _part("routing", state)))
        if self.local is not None:
            new |= _named("local", self.local.fill(lk, lv, _part("local", state)))
        return self(x).out, new

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """O(w) in strict mode and in local heads; O(k·w) and a growing state in top-w mode."""
        (rq, rk, rv), (lq, lk, lv) = self._projected(x[:, None])
        position = int(state["position"][0])
        new: dict[str, Tensor] = {"position": state["position"] + 1}
        outs = []
        if self.routing is not None:
            self.routing.kmeans.check_ready()
            part: State = _part("routing", state)
            if self.routing.options.mode == "strict":
                out, part = strict_step(self.routing, rq, rk, rv, part, position)
            else:
                out, part = top_w_step(self.routing, rq, rv, part, position)
            outs.append(out)
            new |= _named("routing", part)
        if self.local is not None:
            out, ring = self.local.step(lq, lk, lv, _part("local", state), position)
            outs.append(out)
            new |= _named("local", ring)
        return self._joined(outs)[:, 0], new

    def _projected(
        self, x: Tensor
    ) -> tuple[tuple[Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """(q, k, v) of the routing heads and of the local ones, each (batch, heads, seq, head_dim)."""
        q, v = self._heads(self.to_q(x)), self._heads(self.to_v(x))
        k = q[:, :0] if self.to_k is None else self._heads(self.to_k(x))
        routing, shared = self.split.n_routing_heads, self.n_key_heads == self.split.n_local_heads
        rk, lk = (None, k) if shared else (k[:, :routing], k[:, routing:])
        return (q[:, :routing], rk, v[:, :routing]), (q[:, routing:], lk, v[:, routing:])

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _joined(self, outs: list[Tensor]) -> Tensor:
        return self.to_out(torch.cat(outs, 1).transpose(1, 2).flatten(2))

    def _tables(self) -> RelativeTables | None:
        if self.split.positions != "tables":
            return None
        return RelativeTables(self.split.max_relative_position, self.head_dim)


class RoutingCrossAttention(nn.Module):
    """x (batch, n, dim) reads memory (batch, m, dim): queries and keys are routed by the same centroids.

    Raises: as `RoutingHeads`; its options need mode="top-w" and share_qk=False.
    """

    def __init__(self, dim: int, n_heads: int, options: RoutingOptions) -> None:
        super().__init__()
        if n_heads < 1 or dim % n_heads:
            raise ValueError(f"dim={dim} is not divided by n_heads={n_heads}.")
        self.n_heads, self.head_dim = n_heads, dim // n_heads
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.routing = RoutingHeads(n_heads, self.head_dim, options, causal=False, memory=True)

    def forward(
        self,
        x: Float[Tensor, "batch n dim"],
        memory: Float[Tensor, "batch m dim"],
        valid: Bool[Tensor, "batch n"] | None = None,
        memory_valid: Bool[Tensor, "batch m"] | None = None,
    ) -> Routed:
        """Raises: as `RoutingHeads`."""
        q, k, v = (
            layer(t).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer, t in ((self.to_q, x), (self.to_k, memory), (self.to_v, memory))
        )
        routed = self.routing(q, k, v, valid, memory_valid)
        return routed._replace(out=self.to_out(routed.out.transpose(1, 2).flatten(2)))


def _named(prefix: str, state: State) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def _part(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
