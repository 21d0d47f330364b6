"""Linformer: attention to a fixed number of mixtures of the keys and values, linear in the length.

Keys and values are projected along the sequence to `projected` rows each before queries meet them.

Source: Wang et al. 2020, "Linformer: Self-Attention with Linear Complexity", eq. 7 and section 4.
"""

import enum

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from shoestring.layers.low_rank.low_rank_linear import LowRankLinear, linear_of_rank
from shoestring.layers.self_attention import check_heads, join_heads, masked_attention, split_heads


class Sharing(enum.Enum):
    """Which projections along the sequence are one and the same.

    Source: Wang et al. 2020, section 4.
    """

    NONE = "none"
    """Each head has its own two."""
    HEADWISE = "headwise"
    """The heads of a layer have two in common, one for keys and one for values."""
    KEY_VALUE = "key-value"
    """Those two are one."""
    LAYERWISE = "layerwise"
    """All layers have one in common; it is made beforehand and given to each."""


class SequenceProjection(nn.Module):
    """E (max_length, projected), or one for each head: mixes the rows of a sequence into few.

    Drawn uniformly from ±projected^−½, as implementations do; the theory takes N(0, 1/projected), whose
    variance is three times as large.

    Raises: ValueError for projected < 1 or above `max_length`.
    """

    def __init__(self, max_length: int, projected: int, heads: int | None = None) -> None:
        super().__init__()
        if not 1 <= projected <= max_length:
            raise ValueError(
                f"projected={projected} must be from 1 to max_length={max_length}: more rows than the "
                "sequence has save nothing."
            )
        self.max_length, self.projected, self.heads = max_length, projected, heads
        shape = (max_length, projected) if heads is None else (heads, max_length, projected)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-(projected**-0.5), projected**-0.5))

    def rows(self, length: int) -> Float[Tensor, "*heads length projected"]:
        """The rows that a sequence of this length meets: the first ones, as if it were padded with zeros.

        Raises: ValueError for a length above `max_length`.
        """
        if length > self.max_length:
            raise ValueError(
                f"a sequence of {length} is longer than max_length={self.max_length}, which the weights fix; "
                "cut it, or build the layer longer."
            )
        return self.weight[..., :length, :]


class LinformerAttention(nn.Module):
    """softmax(Q (Eᵀ K)ᵀ / √d_h) (Fᵀ V), heads joined and projected; bidirectional only.

    Shapes: x (batch, seq, d_model) -> (batch, seq, d_model), for seq up to `max_length`; context
    (batch, keys, d_model), where keys and values come from elsewhere; mask (batch, keys): True at real
    tokens, the others are zeroed before they are projected. Dropout is that of the attention.

    one_kv_head: all query heads share one head of keys and values. rank: the four linear maps are of this
    rank. bias: of q, k and v; the output map has one always. shared: the projection of all layers, for
    `Sharing.LAYERWISE` alone.

    Raises: ValueError for `causal` (mixing along time shows each token those after it), for projected above
    `max_length`, for a layerwise projection that is missing or of other sizes, or for one that is not asked
    for.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        max_length: int,
        projected: int,
        *,
        sharing: Sharing = Sharing.HEADWISE,
        shared: SequenceProjection | None = None,
        one_kv_head: bool = False,
        rank: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if causal:
            raise ValueError(
                "causal=True: Linformer mixes keys of all times, so a token would see those after it; use "
                "attention by windows or a recurrence instead."
            )
        check_heads(d_model, n_heads)
        self.n_heads, self.dropout = n_heads, dropout
        self.kv_heads = 1 if one_kv_head else n_heads
        kv_dim = d_model // n_heads * self.kv_heads
        self.query = linear_of_rank(d_model, d_model, rank, bias=bias)
        self.key = linear_of_rank(d_model, kv_dim, rank, bias=bias)
        self.value = linear_of_rank(d_model, kv_dim, rank, bias=bias)
        self.out = linear_of_rank(d_model, d_model, rank)
        self.project_key, self.project_value = self._projections(max_length, projected, sharing, shared)

    def _projections(
        self, max_length: int, projected: int, sharing: Sharing, shared: SequenceProjection | None
    ) -> tuple[SequenceProjection, SequenceProjection]:
        if sharing is Sharing.LAYERWISE:
            if shared is None:
                raise ValueError("Sharing.LAYERWISE needs shared=SequenceProjection(max_length, projected).")
            sizes = shared.max_length, shared.projected, shared.heads
            if sizes != (max_length, projected, None):
                raise ValueError(
                    f"the shared projection has (max_length, projected, heads) = {sizes}, but this layer "
                    f"{(max_length, projected, None)}: layers that share one must be of one length."
                )
            return shared, shared
        if shared is not None:
            raise ValueError(f"shared is for Sharing.LAYERWISE only, not {sharing}.")
        heads = self.kv_heads if sharing is Sharing.NONE else None
        first = SequenceProjection(max_length, projected, heads)
        return first, first if sharing is Sharing.KEY_VALUE else SequenceProjection(
            max_length, projected, heads
        )

    def forward(
        self,
        x: Float[Tensor, "batch seq d_model"],
        mask: Bool[Tensor, "batch keys"] | None = None,
        context: Float[Tensor, "batch keys d_model"] | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        source = x if context is None else context
        q = split_heads(self.query(x), self.n_heads)
        k, v = self._mixed(source, mask)
        if self.kv_heads == 1:
            k, v = (t.expand(-1, self.n_heads, -1, -1) for t in (k, v))
        dropout = self.dropout if self.training else 0.0
        return self.out(join_heads(masked_attention(q, k, v, None, dropout=dropout)))

    def _mixed(self, source: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Eᵀ K and Fᵀ V as (batch, heads, projected, head_dim), by the order of products that costs less."""
        length, d_model = source.shape[1:]
        e, f = self.project_key.rows(length), self.project_value.rows(length)
        if mask is not None:
            source = source.masked_fill(~mask[..., None], 0.0)
        if e.dim() == 2 and mixes_first(length, e.shape[-1], d_model, self.key.out_features):
            mixed = e.mT @ source
            other = mixed if f is e or self.project_value is self.project_key else f.mT @ source
            k = self.key(mixed) + _bias_correction(self.key, e, mask)
            v = self.value(other) + _bias_correction(self.value, f, mask)
            return split_heads(k, self.kv_heads), split_heads(v, self.kv_heads)
        k, v = self.key(source), self.value(source)
        if mask is not None:
            k, v = (t.masked_fill(~mask[..., None], 0.0) for t in (k, v))
        return e.mT @ split_heads(k, self.kv_heads), f.mT @ split_heads(v, self.kv_heads)


def mixes_first(length: int, projected: int, d_model: int, kv_dim: int) -> bool:
    """Whether (Eᵀ x) W takes fewer multiplications than Eᵀ (x W)."""
    return projected * d_model * (length + kv_dim) < length * kv_dim * (d_model + projected)


def _bias_correction(layer: LowRankLinear | nn.Linear, e: Tensor, mask: Tensor | None) -> Tensor | float:
    """What turns (Eᵀ x) W + b into Eᵀ (x W + m b), where m is 1 at real tokens: (Eᵀ m − 1) b."""
    if layer.bias is None:
        return 0.0
    sums = e.sum(0) if mask is None else mask.to(e.dtype) @ e
    return (sums - 1)[..., None] * layer.bias


def naive_linformer(
    layer: LinformerAttention,
    x: Float[Tensor, "batch seq d_model"],
    mask: Bool[Tensor, "batch keys"] | None = None,
    context: Float[Tensor, "batch keys d_model"] | None = None,
) -> Float[Tensor, "batch seq d_model"]:
    """Head by head in the order of the paper, on inputs padded to `max_length`: what the layer means."""
    source = x if context is None else context
    real = torch.ones(source.shape[:2], dtype=torch.bool) if mask is None else mask
    padded = layer.project_key.max_length - source.shape[1]
    q, k, v = layer.query(x), layer.key(source), layer.value(source)
    k, v = (nn.functional.pad(t * real[..., None], (0, 0, 0, padded)) for t in (k, v))
    k_heads, v_heads = k.chunk(layer.kv_heads, -1), v.chunk(layer.kv_heads, -1)
    heads = []
    for h, q_h in enumerate(q.chunk(layer.n_heads, -1)):
        at = h if layer.kv_heads > 1 else 0
        e, f = (
            p.weight if p.heads is None else p.weight[at] for p in (layer.project_key, layer.project_value)
        )
        k_h, v_h = e.T @ k_heads[at], f.T @ v_heads[at]
        heads.append((q_h @ k_h.mT / q_h.shape[-1] ** 0.5).softmax(-1) @ v_h)
    return layer.out(torch.cat(heads, -1))
