"""Self-attention along a line, whole or one element at a time, and its residual block.

Source: Ho et al. 2019, "Axial Attention in Multidimensional Transformers", section 3.2 and the authors' code
(the shape of the block and how it starts).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.layers.self_attention import SelfAttention

ZERO_SCALE = 1e-10
"""Variance scale of output layers: a fresh block is the identity, and yet its gradient is not zero."""


@dataclass
class LineCache:
    """Keys and values of the first `length` elements of each line; there is room for all of them."""

    keys: Float[Tensor, "batch heads room head_dim"]
    values: Float[Tensor, "batch heads room head_dim"]
    length: int = 0

    def append(
        self, key: Float[Tensor, "batch heads head_dim"], value: Float[Tensor, "batch heads head_dim"]
    ) -> None:
        """Keep those of the next element. Raises: ValueError when the lines are full."""
        if self.length == self.keys.shape[2]:
            raise ValueError(f"the lines are full: they have room for {self.keys.shape[2]} elements")
        self.keys[:, :, self.length] = key
        self.values[:, :, self.length] = value
        self.length += 1


class LineAttention(SelfAttention):
    """Every element of a sequence looks at all of it, or (`causal`) at itself and those before it.

    Shapes: x (batch, seq, dim) -> (batch, seq, dim). Starts so that its output is almost zero, and goes on
    element by element with a cache. Raises: ValueError for a dim that n_heads does not divide.
    """

    def __init__(self, dim: int, n_heads: int, *, causal: bool = False, qkv_bias: bool = True) -> None:
        super().__init__(dim, n_heads, causal=causal, qkv_bias=qkv_bias)
        scaled_normal_(self.qkv)
        scaled_normal_(self.out, ZERO_SCALE)

    def cache(self, batch: int, room: int) -> LineCache:
        """An empty cache for so many lines of `room` elements, of the type and on the device of the weights.

        Raises: ValueError where the attention is not causal: what was computed would change later.
        """
        if not self.causal:
            raise ValueError("only causal attention can be continued; this one sees later elements")
        shape = batch, self.n_heads, room, self.out.in_features // self.n_heads
        weight = self.out.weight
        return LineCache(weight.new_empty(shape), weight.new_empty(shape))

    def step(self, x: Float[Tensor, "batch dim"], cache: LineCache) -> Float[Tensor, "batch dim"]:
        """The output of one more element of each line, which enters `cache`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).unbind(1)
        cache.append(k, v)
        keys, values = cache.keys[:, :, : cache.length], cache.values[:, :, : cache.length]
        return self.out(F.scaled_dot_product_attention(q[:, :, None], keys, values).flatten(1))


class AttentionBlock(nn.Module):
    """x + attention(norm(x)), then that + mlp(norm(that)); the mlp is D -> hdim_factor D -> D.

    Shapes: x (batch, seq, dim) -> (batch, seq, dim). `attention` maps that shape to itself; with a
    `LineAttention` a fresh block is the identity up to 1e-4. The activation is x sigmoid(1.702 x).
    Raises: ValueError for a bad factor or dropout.
    """

    attention: Any
    """Typed by what it does, not by its class: `step` asks for one that has a `step` too."""

    def __init__(
        self,
        attention: nn.Module,
        dim: int,
        *,
        hdim_factor: float | int = 1,
        dropout: float | int = 0.0,
    ) -> None:
        super().__init__()
        if not hdim_factor * dim >= 1:
            raise ValueError(f"hdim_factor={hdim_factor} leaves no hidden units of dim={dim}; use 1 or more")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be 0 or more and below 1")
        hidden = int(hdim_factor * dim)
        self.norm_1 = nn.LayerNorm(dim, eps=1e-5)
        self.attention = attention
        self.norm_2 = nn.LayerNorm(dim, eps=1e-5)
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        scaled_normal_(self.up)
        scaled_normal_(self.down, ZERO_SCALE)

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        return self._mlp(x + self.dropout(self.attention(self.norm_1(x))))

    def step(self, x: Float[Tensor, "batch dim"], cache: LineCache) -> Float[Tensor, "batch dim"]:
        """The output of one more element of each line."""
        return self._mlp(x + self.dropout(self.attention.step(self.norm_1(x), cache)))

    def _mlp(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        hidden = self.up(self.norm_2(x))
        return x + self.dropout(self.down(hidden * torch.sigmoid(1.702 * hidden)))


@torch.no_grad()
def scaled_normal_(layer: nn.Linear | nn.Conv2d, scale: float | int = 1.0) -> None:
    """Weights from a normal distribution cut at two deviations, of variance scale / fan-in; biases 0."""
    fan_in = layer.weight[0].numel()
    # A normal distribution cut at two deviations keeps this much of its own.
    std = math.sqrt(scale / fan_in) / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    if layer.bias is not None:
        layer.bias.zero_()
