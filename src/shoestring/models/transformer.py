"""A Transformer whose parts can be exchanged for cheaper ones: maps of low rank, attention to a projected
sequence, and any layer in place of the feed-forward network.

Source: Vaswani et al. 2017, "Attention Is All You Need", section 3; Winata et al. 2020, "Lightweight and
Efficient End-to-End Speech Recognition Using Low-Rank Transformer", section 2 (encoder, decoder without
cross-attention); Wang et al. 2020, "Linformer".
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from shoestring.layers.low_rank.linformer import LinformerAttention, SequenceProjection, Sharing
from shoestring.layers.low_rank.low_rank_attention import LowRankSelfAttention
from shoestring.layers.low_rank.low_rank_embedding import LowRankEmbedding
from shoestring.layers.low_rank.low_rank_linear import linear_of_rank
from shoestring.layers.self_attention import SelfAttention

FeedForward = Callable[[int], nn.Module]
"""Makes, from d_model, the layer that mixes the features of a token: (batch, seq, d_model) -> the same."""
EMBEDDING_STD = 0.02
"""As BERT and GPT-2 begin."""


@dataclass(frozen=True, kw_only=True)
class LinformerOptions:
    """Keys and values are mixed into `projected` rows; the sequence is at most `max_length` long."""

    max_length: int
    projected: int
    sharing: Sharing = Sharing.HEADWISE
    one_kv_head: bool = False


@dataclass(frozen=True, kw_only=True)
class TransformerOptions:
    """Sizes of a stack of blocks.

    rank: of every linear map, None for full ones; 50 to 100 in the paper (d_model = 512; its 2 encoder and 4
    decoder blocks could not be checked and are no default here), 100 for BERT-base.
    linformer: None for plain attention. d_ff: 4 d_model if None. feed_forward: makes the layer that stands in
    place of the two linear maps of that width. norm_first: normalise what enters a branch, instead of the sum
    after it as the paper does.
    Raises: ValueError for sizes below 1.
    """

    d_model: int
    n_heads: int
    n_layers: int
    d_ff: int | None = None
    rank: int | None = None
    linformer: LinformerOptions | None = None
    causal: bool = False
    norm_first: bool = False
    dropout: float = 0.0
    activation: type[nn.Module] = nn.GELU
    feed_forward: FeedForward | None = None

    def __post_init__(self) -> None:
        for name in ("d_model", "n_heads", "n_layers", "d_ff"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name}={size} must be at least 1")


class TransformerBlock(nn.Module):
    """LN(x + attention(x)), then LN(x + W₂ act(W₁ x)); with `norm_first` x + f(LN(x)).

    Shapes: x (batch, seq, d_model) -> the same; mask (batch, seq): True at real tokens. shared: the
    projection of all layers, where sharing is layerwise.
    """

    def __init__(self, options: TransformerOptions, shared: SequenceProjection | None = None) -> None:
        super().__init__()
        d_model = options.d_model
        self.norm_first = options.norm_first
        self.attention = _attention(options, shared)
        self.feed_forward = _feed_forward(options)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(options.dropout)

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq d_model"]:
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), mask))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class TransformerEncoder(nn.Module):
    """Blocks one after the other, with a last norm where they normalise first.

    Shapes: x (batch, seq, d_model) -> the same; mask (batch, seq): True at real tokens.

    Raises: ValueError as the layers do, e.g. for Linformer that should be causal.
    """

    def __init__(self, options: TransformerOptions) -> None:
        super().__init__()
        line = options.linformer
        layerwise = line is not None and line.sharing is Sharing.LAYERWISE
        shared = SequenceProjection(line.max_length, line.projected) if line and layerwise else None
        self.blocks = nn.ModuleList(TransformerBlock(options, shared) for _ in range(options.n_layers))
        self.norm = nn.LayerNorm(options.d_model) if options.norm_first else nn.Identity()

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq d_model"]:
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class TransformerLM(nn.Module):
    """Predicts the next token: embeddings, learned places, causal blocks, a head.

    Shapes: ids (batch, seq) -> logits (batch, seq, vocab_size). embedding_rank: of the table and of the head,
    None for full ones. tied: the table is the head as well.

    Raises: ValueError for sizes below 1, a sequence above `max_length`, options with Linformer, which is not
    causal, or a table that is both tied and of low rank.
    """

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        options: TransformerOptions,
        embedding_rank: int | None = None,
        *,
        tied: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (("vocab_size", vocab_size), ("max_length", max_length)):
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if tied and embedding_rank is not None:
            raise ValueError(f"embedding_rank={embedding_rank} has a head of its own; use tied=False")
        d_model = options.d_model
        self.max_length = max_length
        if embedding_rank is None:
            self.embedding: nn.Embedding | LowRankEmbedding = nn.Embedding(vocab_size, d_model)
            nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        else:
            self.embedding = LowRankEmbedding(vocab_size, d_model, embedding_rank)
            nn.init.normal_(self.embedding.table.weight, std=EMBEDDING_STD)
        self.places = nn.Embedding(max_length, d_model)
        nn.init.normal_(self.places.weight, std=EMBEDDING_STD)
        self.encoder = TransformerEncoder(replace(options, causal=True))
        self.head = linear_of_rank(d_model, vocab_size, embedding_rank, bias=False)
        if tied and isinstance(self.embedding, nn.Embedding) and isinstance(self.head, nn.Linear):
            self.head.weight = self.embedding.weight

    def forward(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        seq = ids.shape[1]
        if seq > self.max_length:
            raise ValueError(
                f"a sequence of {seq} tokens is longer than max_length={self.max_length}; cut it."
            )
        places = self.places(torch.arange(seq, device=ids.device))
        return self.head(self.encoder(self.embedding(ids) + places))


def _attention(options: TransformerOptions, shared: SequenceProjection | None) -> nn.Module:
    d_model, n_heads, dropout = options.d_model, options.n_heads, options.dropout
    if (line := options.linformer) is not None:
        return LinformerAttention(
            d_model, n_heads, line.max_length, line.projected, sharing=line.sharing, shared=shared,
            one_kv_head=line.one_kv_head, rank=options.rank, causal=options.causal, dropout=dropout,
        )  # fmt: skip
    if options.rank is not None:
        return LowRankSelfAttention(d_model, n_heads, options.rank, causal=options.causal, dropout=dropout)
    return SelfAttention(d_model, n_heads, causal=options.causal, dropout=dropout)


def _feed_forward(options: TransformerOptions) -> nn.Module:
    if options.feed_forward is not None:
        return options.feed_forward(options.d_model)
    d_ff = 4 * options.d_model if options.d_ff is None else options.d_ff
    return nn.Sequential(
        linear_of_rank(options.d_model, d_ff, options.rank),
        options.activation(),
        linear_of_rank(d_ff, options.d_model, options.rank),
    )
