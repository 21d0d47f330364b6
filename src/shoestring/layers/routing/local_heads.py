"""Local heads: blocked attention of each head among neighbours, and its ring for decoding.

Source: Roy et al. 2021, "Efficient Content-Based Sparse Attention with Routing Transformers", section 4.1.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from shoestring.layers.local_attention import LocalPattern, local_attention
from shoestring.layers.rotary import Rope, rotate_heads
from shoestring.layers.routing.relative_tables import RelativeTables
from shoestring.layers.state import State


class LocalHeads(nn.Module):
    """(q, k, v) -> outputs, each (batch, heads, n, head_dim): own block and the ones beside it.

    relative: tables over distances. rope: rotary on true positions instead; with neither, no positions.
    """

    def __init__(
        self,
        n_heads: int,
        head_dim: int,
        pattern: LocalPattern,
        *,
        relative: RelativeTables | None = None,
        rope: Rope | None = None,
    ) -> None:
        super().__init__()
        self.n_heads, self.head_dim, self.pattern = n_heads, head_dim, pattern
        self.relative, self.rope = relative, rope
        self.scale = head_dim**-0.5

    def forward(
        self,
        q: Float[Tensor, "batch heads n dim"],
        k: Float[Tensor, "batch heads n dim"],
        v: Float[Tensor, "batch heads n dim"],
        valid: Bool[Tensor, "batch n"] | None = None,
    ) -> Float[Tensor, "batch heads n dim"]:
        """valid: tokens that are no padding."""
        position = torch.arange(q.shape[2], device=q.device)
        q, k = self._turned(q, position), self._turned(k, position)
        relative, reach, scale = self.relative, self.pattern.span, self.scale
        return local_attention(
            q,
            k,
            v,
            self.pattern,
            scale=scale,
            valid=None if valid is None else valid[:, None],
            bias=None
            if relative is None
            else lambda b: relative.scores(b.queries(q), b.distance, reach) * scale,
            value_bias=None if relative is None else lambda b, a: relative.outputs(a, b.distance, reach),
        )

    def init_state(self, batch: int, device: torch.device | str | None, dtype: torch.dtype) -> State:
        """A ring for the blocks that a token may see."""
        shape = (batch, self.n_heads, self.pattern.span, self.head_dim)
        return {
            "keys": torch.zeros(shape, device=device, dtype=dtype),
            "values": torch.zeros(shape, device=device, dtype=dtype),
        }

    def fill(
        self, k: Float[Tensor, "batch heads n dim"], v: Float[Tensor, "batch heads n dim"], state: State
    ) -> State:
        """The state after the tokens 0 .. n − 1, from an empty one."""
        n, slots = k.shape[2], self.pattern.span
        position = torch.arange(n, device=k.device)
        turned = self._turned(k, position)
        kept = position[max(0, n - slots) :]
        return {
            name: state[name].index_copy(2, kept % slots, new[:, :, kept].to(state[name].dtype))
            for name, new in (("keys", turned), ("values", v))
        }

    def step(
        self,
        q: Float[Tensor, "batch heads 1 dim"],
        k: Float[Tensor, "batch heads 1 dim"],
        v: Float[Tensor, "batch heads 1 dim"],
        state: State,
        position: int,
    ) -> tuple[Float[Tensor, "batch heads 1 dim"], State]:
        """The output of the token at `position` of a causal pattern, and the state with it."""
        slots = self.pattern.span
        at = torch.tensor([position], device=q.device)
        q, k = self._turned(q, at), self._turned(k, at)
        keys = state["keys"].index_copy(2, at % slots, k.to(state["keys"].dtype))
        values = state["values"].index_copy(2, at % slots, v.to(state["values"].dtype))
        stored = at - (at - torch.arange(slots, device=q.device)) % slots
        seen = self.pattern.sees(at, stored) & (stored >= 0)
        exact = torch.promote_types(q.dtype, torch.float32)
        scores = (q @ keys.to(q.dtype).transpose(-1, -2)).to(exact) * self.scale
        distance = (stored - at)[None]
        if self.relative is not None:
            scores = scores + self.relative.scores(q, distance, slots) * self.scale
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).to(q.dtype)
        out = weights @ values.to(q.dtype)
        if self.relative is not None:
            out = out + self.relative.outputs(weights, distance, slots)
        return out, {"keys": keys, "values": values}

    def _turned(
        self, x: Float[Tensor, "batch heads n dim"], position: Int[Tensor, " n"]
    ) -> Float[Tensor, "batch heads n dim"]:
        return x if self.rope is None else rotate_heads(x, position, self.rope)
