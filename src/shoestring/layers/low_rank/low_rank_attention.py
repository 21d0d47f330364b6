"""Multi-head self-attention whose four projections are of low rank.

The three encoders of q, k and v are one product, their decoders one batched product.

Source: Winata et al. 2020, "Lightweight and Efficient End-to-End Speech Recognition Using Low-Rank
Transformer", section 2.2 (LRMHA).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from shoestring.layers.low_rank.low_rank_linear import LowRankLinear
from shoestring.layers.self_attention import check_heads, join_heads, masked_attention


class LowRankSelfAttention(nn.Module):
    """softmax(Q Kᵀ / √d_h) V with Q, K, V = (x Aᵀ) Bᵀ + b each, and an output projection alike.

    Shapes: x (batch, seq, d_model) -> (batch, seq, d_model); mask (batch, seq): True at real tokens.
    `down.weight` stacks the encoders of q, k, v; `up` holds their decoders as (3, rank, d_model).

    Raises: ValueError for a rank below 1 or heads that do not divide `d_model`.
    """

    def __init__(
        self, d_model: int, n_heads: int, rank: int, *, causal: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_heads(d_model, n_heads)
        self.d_model, self.n_heads, self.rank = d_model, n_heads, rank
        self.causal, self.dropout = causal, dropout
        self.out = LowRankLinear(d_model, d_model, rank)
        self.down = nn.Linear(d_model, 3 * rank, bias=False)
        self.up = nn.Parameter(torch.empty(3, rank, d_model))
        self.up_bias = nn.Parameter(torch.empty(3, d_model))
        nn.init.normal_(self.down.weight, std=d_model**-0.5)
        nn.init.uniform_(self.up, -(rank**-0.5), rank**-0.5)
        nn.init.uniform_(self.up_bias, -(rank**-0.5), rank**-0.5)

    @classmethod
    def of(
        cls,
        query: LowRankLinear,
        key: LowRankLinear,
        value: LowRankLinear,
        out: LowRankLinear,
        n_heads: int,
        *,
        causal: bool = False,
    ) -> "LowRankSelfAttention":
        """A layer with the weights of four projections, e.g. of factored trained ones; copied.

        Raises: ValueError where the projections are not (d_model, d_model) of one rank with a bias.
        """
        parts = query, key, value
        shapes = {(p.in_features, p.out_features, p.rank, p.bias is None) for p in (*parts, out)}
        d_model, rank = query.in_features, query.rank
        if shapes != {(d_model, d_model, rank, False)}:
            raise ValueError(
                "query, key, value and out must have equal inputs, outputs and rank, and a bias; they have "
                f"(inputs, outputs, rank, no bias) {sorted(shapes)}."
            )
        layer = cls(d_model, n_heads, rank, causal=causal).to(query.down.weight)
        layer.out.load_state_dict(out.state_dict())
        with torch.no_grad():
            layer.down.weight.copy_(torch.cat([p.down.weight for p in parts]))
            layer.up.copy_(torch.stack([p.up.weight.T for p in parts]))
            layer.up_bias.copy_(torch.stack([p.up.bias for p in parts]))
        return layer

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq d_model"]:
        batch, seq, _ = x.shape
        inner = self.down(x).view(batch * seq, 3, self.rank).transpose(0, 1)
        up, bias = self.up.to(inner.dtype), self.up_bias.to(inner.dtype)
        projected = torch.baddbmm(bias[:, None], inner, up)
        # Taken apart before heads come first: their gradients then come together without a copy.
        q, k, v = (t.transpose(1, 2) for t in projected.view(3, batch, seq, self.n_heads, -1))
        dropout = self.dropout if self.training else 0.0
        return self.out(join_heads(masked_attention(q, k, v, mask, causal=self.causal, dropout=dropout)))


def naive_low_rank_attention(
    layer: LowRankSelfAttention,
    x: Float[Tensor, "batch seq d_model"],
    mask: Bool[Tensor, "batch seq"] | None = None,
) -> Float[Tensor, "batch seq d_model"]:
    """Head by head, with full matrices and every score: the meaning of `LowRankSelfAttention`."""
    encoders = layer.down.weight.chunk(3)
    q, k, v = (
        x @ a.T @ b + bias for a, b, bias in zip(encoders, layer.up, layer.up_bias, strict=True)
    )  # fmt: skip
    seen = torch.ones(x.shape[0], x.shape[1], x.shape[1], dtype=torch.bool)
    seen = seen if mask is None else seen & mask[:, None]
    seen = seen.tril() if layer.causal else seen
    heads = []
    for q_h, k_h, v_h in zip(*(t.chunk(layer.n_heads, -1) for t in (q, k, v)), strict=True):
        scores = (q_h @ k_h.mT / q_h.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf)
        heads.append(scores.softmax(-1) @ v_h)
    return torch.cat(heads, -1) @ layer.out.weight.T + layer.out.up.bias
