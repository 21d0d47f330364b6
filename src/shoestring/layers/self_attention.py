"""Multi-head self-attention as a module: q, k, v from one product, and what variants of it share."""

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """softmax(Q Kᵀ / √d_h) V, heads joined and projected. causal: token i sees the tokens j <= i.

    Shapes: x (batch, seq, d_model) -> (batch, seq, d_model); mask (batch, seq): True at real tokens.

    Raises: ValueError where `n_heads` does not divide `d_model`.
    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        causal: bool = False,
        dropout: float = 0.0,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        check_heads(d_model, n_heads)
        self.n_heads, self.causal, self.dropout = n_heads, causal, dropout
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=qkv_bias)
        self.out = nn.Linear(d_model, d_model)

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq d_model"]:
        dropout = self.dropout if self.training else 0.0
        return self.out(
            self_attend(self.qkv(x), self.n_heads, mask=mask, causal=self.causal, dropout=dropout)
        )

    def extra_repr(self) -> str:
        return f"n_heads={self.n_heads}, causal={self.causal}"


def self_attend(
    qkv: Float[Tensor, "batch seq three_d_model"],
    n_heads: int,
    *,
    mask: Bool[Tensor, "batch seq"] | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "batch seq d_model"]:
    """softmax(Q Kᵀ / √d_h) V of each head; queries, keys and values lie one after the other."""
    q, k, v = (split_heads(part, n_heads) for part in qkv.chunk(3, -1))
    return join_heads(masked_attention(q, k, v, mask, causal=causal, dropout=dropout))


def check_heads(d_model: int, n_heads: int) -> None:
    """Raises: ValueError for a width below 1 or one that `n_heads` does not divide."""
    if n_heads < 1 or d_model < 1 or d_model % n_heads:
        raise ValueError(f"n_heads={n_heads} must divide d_model={d_model}.")


def split_heads(
    x: Float[Tensor, "batch seq channels"], n_heads: int
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Channels as heads, in front of the sequence; a view."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def join_heads(x: Float[Tensor, "batch heads seq head_dim"]) -> Float[Tensor, "batch seq channels"]:
    """Heads as channels again."""
    return x.transpose(1, 2).flatten(2)


def masked_attention(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch heads keys head_dim"],
    v: Float[Tensor, "batch heads keys head_dim"],
    mask: Bool[Tensor, "batch keys"] | None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Attention by torch's own kernel. mask: True at keys that may be seen."""
    seen = None if mask is None else mask[:, None, None, :]
    if causal and seen is not None:
        n = q.shape[2]
        seen, causal = seen & seen.new_ones(n, n).tril(), False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout, is_causal=causal)
