"""Blocked local attention: a token sees its own block of the sequence and those beside it, at linear cost.

p_ij = softmax_j(scale · q_i·k_j + bias_ij) over the j that i sees; out_i = Σ_j p_ij v_j. The sequence is
cut into blocks; a block of queries meets the keys of that block, of `before` blocks to its left and of
`after` to its right.

Source: Roy et al. 2021, "Efficient Content-Based Sparse Attention with Routing Transformers", section 4.1
(own block and the one before); Ren et al. 2023, "Sparse Modular Activation for Efficient Sequence Modeling"
(exact window, squared rectifier).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LocalPattern:
    """Which tokens see each other: block(i) − before ≤ block(j) ≤ block(i) + after, and on top of that
    j ≤ i with `causal`, and |i − j| ≤ reach with a `reach`.

    Raises: ValueError for a block below 1, negative counts, a causal pattern that looks ahead, or a reach
    that the blocks do not cover.
    """

    block: int
    before: int = 1
    after: int = 0
    causal: bool = True
    reach: int | None = None

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(f"block={self.block} must be 1 or more.")
        for name in ("before", "after", "reach"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name}={value} must be 0 or more.")
        if self.causal and self.after:
            raise ValueError(f"after={self.after} looks ahead; use after=0 or causal=False.")
        covered = self.block * (self.before if self.causal else min(self.before, self.after))
        if self.reach is not None and self.reach > covered:
            raise ValueError(f"reach={self.reach} is more than the {covered} tokens that the blocks cover.")

    @classmethod
    def window(cls, width: int, *, causal: bool) -> "LocalPattern":
        """Exactly |i − j| ≤ width, in blocks of `width`. Raises: ValueError for a width below 1."""
        if width < 1:
            raise ValueError(f"window={width} must be 1 or more.")
        return cls(width, before=1, after=0 if causal else 1, causal=causal, reach=width)

    @property
    def span(self) -> int:
        """Keys that stand beside each block of queries."""
        return self.block * (self.before + 1 + self.after)

    def sees(self, query: Int[Tensor, "*#shape"], key: Int[Tensor, "*#shape"]) -> Bool[Tensor, "*shape"]:
        """Whether the token at position `query` sees the one at `key`."""
        apart = key.div(self.block, rounding_mode="floor") - query.div(self.block, rounding_mode="floor")
        seen = (apart >= -self.before) & (apart <= self.after)
        if self.causal:
            seen = seen & (key <= query)
        if self.reach is not None:
            seen = seen & ((key - query).abs() <= self.reach)
        return seen


class _Neighbours(torch.autograd.Function):
    """`count` stretches of a padded sequence, a block after each other, that overlap: nothing is copied.

    The gradient adds them up, one block of all stretches at a time.
    """

    @staticmethod
    def forward(ctx: Any, padded: Tensor, count: int, block: int) -> Tensor:
        padded = padded.contiguous()
        *batch, length, dim = padded.shape
        ctx.sizes = count, block, length
        *outer, _, _ = padded.stride()
        span = length - (count - 1) * block
        return padded.as_strided((*batch, count, span, dim), (*outer, block * dim, dim, 1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        count, block, length = ctx.sizes
        total = grads[0].new_zeros(*grads[0].shape[:-3], length // block, block, grads[0].shape[-1])
        for shift in range(length // block - count + 1):
            total.narrow(-3, shift, count).add_(grads[0].narrow(-2, shift * block, block))
        return total.flatten(-3, -2), None, None


class Blocks:
    """A sequence of n positions, cut: for hooks that must see queries and keys as they meet.

    Attributes: count: blocks; the last may be padded. before, after: those that meet each, no more than
    there are. distance (block, span): position of a key minus that of a query.
    """

    def __init__(self, pattern: LocalPattern, n: int, device: torch.device | str = "cpu") -> None:
        self.pattern, self.n = pattern, n
        self.count = -(-n // pattern.block)
        # A short sequence has no more neighbours than blocks.
        self.before, self.after = (min(side, self.count - 1) for side in (pattern.before, pattern.after))
        self._row = torch.arange(pattern.block, device=device)
        start, stop = -self.before * pattern.block, (self.after + 1) * pattern.block
        self._column = torch.arange(start, stop, device=device)
        self.distance: Int[Tensor, "block span"] = self._column - self._row[:, None]

    def queries(self, x: Float[Tensor, "*batch n dim"] | Int[Tensor, "*batch n dim"]) -> Tensor:
        """(*batch, count, block, dim): zeros behind the end."""
        padded = F.pad(x, (0, 0, 0, self.count * self.pattern.block - self.n))
        return padded.unflatten(-2, (self.count, self.pattern.block))

    def keys(self, x: Float[Tensor, "*batch n dim"] | Int[Tensor, "*batch n dim"]) -> Tensor:
        """(*batch, count, span, dim): zeros outside of the sequence."""
        block = self.pattern.block
        behind = (self.count + self.after) * block - self.n
        padded = F.pad(x, (0, 0, self.before * block, behind))
        near: Tensor = _Neighbours.apply(padded, self.count, block)
        return near

    def merge(self, blocks: Float[Tensor, "*batch count block dim"]) -> Float[Tensor, "*batch n dim"]:
        """Undo `queries`."""
        return blocks.flatten(-3, -2).narrow(-2, 0, self.n)

    def seen(self) -> Bool[Tensor, "count block span"]:
        """What the pattern shows, nothing outside of the sequence."""
        start = torch.arange(self.count, device=self._row.device)[:, None] * self.pattern.block
        key = (start + self._column)[:, None, :]
        inside = (key >= 0) & (key < self.n)
        return self.pattern.sees(self._row[:, None], self._column) & inside


Bias = Callable[[Blocks], Float[Tensor, "*#batch #count #block #span"]]
"""What is added to the scaled scores."""
Allowed = Callable[[Blocks], Bool[Tensor, "*#batch #count #block #span"]]
"""Which pairs may meet, besides what the pattern says."""
Activation = Callable[[Float[Tensor, "*rows span"], Bool[Tensor, "*#rows span"]], Float[Tensor, "*rows span"]]
"""From scores and what each row sees (every row something) to weights."""
ValueBias = Callable[[Blocks, Float[Tensor, "*batch count block span"]], Tensor]
"""What is added to the output, from the weights: (*batch, count, block, dim)."""


def softmax_weights(
    scores: Float[Tensor, "*rows span"], seen: Bool[Tensor, "*#rows span"]
) -> Float[Tensor, "*rows span"]:
    """Softmax over what a row sees."""
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


def squared_relu_weights(
    scores: Float[Tensor, "*rows span"], seen: Bool[Tensor, "*#rows span"]
) -> Float[Tensor, "*rows span"]:
    """max(score, 0)², nothing normalised: the scale of the scores must hold them small (1 / keys seen)."""
    return scores.relu().square().masked_fill(~seen, 0.0)


def local_attention(
    q: Float[Tensor, "*batch n dim"],
    k: Float[Tensor, "*batch n dim"],
    v: Float[Tensor, "*batch n dim_v"],
    pattern: LocalPattern,
    *,
    scale: float | None = None,
    valid: Bool[Tensor, "*#batch n"] | None = None,
    allowed: Allowed | None = None,
    bias: Bias | None = None,
    value_bias: ValueBias | None = None,
    activation: Activation | None = None,
) -> Float[Tensor, "*batch n dim_v"]:
    """Attention among neighbours. scale: by default dim^-0.5. valid: which tokens are no padding.

    A token that is padding, or that sees nothing, gets 0. Without bias and with softmax, torch's fused kernel
    runs and keeps no scores; else the scores of all blocks, (n, span), exist at once, at least in float32.
    Raises: ValueError for a sequence of padding only.
    """
    if valid is not None:
        check_valid(valid)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    blocks = Blocks(pattern, q.shape[-2], q.device)
    seen = blocks.seen()
    if valid is not None:
        seen = seen & blocks.keys(valid[..., None].int()).bool().transpose(-1, -2)
    if allowed is not None:
        seen = seen & allowed(blocks)
    blind = ~seen.any(-1, keepdim=True)
    seen = seen | blind  # an empty softmax would be no number, and neither would its gradient
    queries, keys, values = blocks.queries(q), blocks.keys(k), blocks.keys(v)
    if bias is None and value_bias is None and activation is None:
        out = _fused(queries, keys, values, seen, scale)
    else:
        exact = torch.promote_types(q.dtype, torch.float32)
        scores = (queries @ keys.transpose(-1, -2)).to(exact) * scale
        if bias is not None:
            scores = scores + bias(blocks)
        weights = (activation or softmax_weights)(scores, seen).to(values.dtype)
        out = weights @ values
        if value_bias is not None:
            out = out + value_bias(blocks, weights)
    if valid is not None or allowed is not None:
        out = out.masked_fill(blind, 0.0)  # else every token sees itself
    out = blocks.merge(out)
    return out if valid is None else out.masked_fill(~valid[..., None], 0.0)


def check_valid(valid: Bool[Tensor, "*batch n"]) -> None:
    """Raises: ValueError for a sequence of padding only."""
    if not torch.compiler.is_compiling() and not bool(valid.any(-1).all()):
        raise ValueError("valid marks a sequence without a single token; leave it out of the batch.")


def naive_local_attention(
    q: Float[Tensor, "*batch n dim"],
    k: Float[Tensor, "*batch n dim"],
    v: Float[Tensor, "*batch n dim_v"],
    pattern: LocalPattern,
    *,
    scale: float | None = None,
    valid: Bool[Tensor, "*#batch n"] | None = None,
    allowed: Bool[Tensor, "*#batch n n"] | None = None,
    bias: Float[Tensor, "*#batch n n"] | None = None,
    activation: Activation = softmax_weights,
) -> Float[Tensor, "*batch n dim_v"]:
    """Every pair of positions, with a mask: the meaning of `local_attention`."""
    position = torch.arange(q.shape[-2], device=q.device)
    seen = pattern.sees(position[:, None], position)
    if valid is not None:
        seen = seen & valid[..., None, :] & valid[..., :, None]
    if allowed is not None:
        seen = seen & allowed
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    something = seen.any(-1, keepdim=True)
    return (activation(scores, seen | ~something) @ v) * something


def _fused(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float) -> Tensor:
    """torch's kernel, with a block in the place of a head."""
    batch = queries.shape[:-3]
    seen = seen.expand(*batch, *seen.shape[-3:]).flatten(0, -4) if seen.dim() > 3 else seen[None]
    q, k, v = (t.reshape(-1, *t.shape[-3:]) for t in (queries, keys, values))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
    return out.reshape(*batch, *out.shape[1:])
