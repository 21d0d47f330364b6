"""A small causal Transformer over tokens whose feed-forward part can be any layer: the common baseline.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3 (norms before
each part, learned positions, GELU).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

FeedForward = Callable[[int], nn.Module]
"""Makes the layer of a block that mixes the features of a token: (batch, seq, d_model) -> the same."""


class MLP(nn.Sequential):
    """Linear, GELU, linear. Shapes: (…, d_model) -> (…, d_model). Raises: ValueError for hidden < 1."""

    def __init__(self, d_model: int, hidden: int) -> None:
        if hidden < 1:
            raise ValueError(f"hidden={hidden} must be at least 1")
        super().__init__(nn.Linear(d_model, hidden), nn.GELU(), nn.Linear(hidden, d_model))


class CausalSelfAttention(nn.Module):
    """Attention of each token to itself and those before. Shapes: (batch, seq, d_model) -> the same."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.inputs, self.output = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)

    def forward(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        q, k, v = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in self.inputs(x).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then + feed_forward(norm(·))."""

    def __init__(self, d_model: int, n_heads: int, feed_forward: nn.Module) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(2))
        self.attention, self.feed_forward = CausalSelfAttention(d_model, n_heads), feed_forward

    def forward(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        x = x + self.attention(self.norms[0](x))
        return x + self.feed_forward(self.norms[1](x))


class TokenTransformer(nn.Module):
    """Token and position embeddings, blocks, a norm, and a head that is the token embedding again.

    feed_forward: makes that part of a block; an MLP of four times the width by default.
    Shapes: ids (batch, seq ≤ context) -> logits (batch, seq, vocabulary).
    Raises: ValueError for sizes below 1 or a width that the heads do not divide; in use, for too long a
    sequence.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        d_model: int = 128,
        n_layers: int = 4,
        n_heads: int = 4,
        context: int = 64,
        feed_forward: FeedForward | None = None,
    ) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "d_model": d_model, "n_layers": n_layers, "context": context}
        for name, size in {**sizes, "n_heads": n_heads}.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if d_model % n_heads:
            raise ValueError(f"d_model={d_model} is not divided by n_heads={n_heads}")
        make = feed_forward or (lambda width: MLP(width, 4 * width))
        self.tokens, self.positions = nn.Embedding(vocabulary, d_model), nn.Embedding(context, d_model)
        self.blocks = nn.ModuleList(
            TransformerBlock(d_model, n_heads, make(d_model)) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocabulary"]:
        seq, context = ids.shape[1], self.positions.num_embeddings
        if seq > context:
            raise ValueError(f"the sequence has {seq} tokens, the model a context of {context}; crop it")
        x = self.tokens(ids) + self.positions(torch.arange(seq, device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.mT
