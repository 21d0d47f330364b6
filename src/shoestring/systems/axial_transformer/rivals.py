"""Row-major transformers over pictures: one sees all values before a pixel, one the nearest."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.layers.axial.line_attention import (
    ZERO_SCALE,
    AttentionBlock,
    LineAttention,
    LineCache,
    scaled_normal_,
)
from shoestring.layers.local_attention import LocalPattern, local_attention
from shoestring.models.axial_image_config import AxialImageConfig
from shoestring.models.grid_position import GridPosition


class LocalLineAttention(nn.Module):
    """Causal attention that sees an element and the `width - 1` before it, at linear cost."""

    def __init__(self, dim: int, n_heads: int, width: int) -> None:
        super().__init__()
        self.whole = LineAttention(dim, n_heads, causal=True)
        # Smaller blocks compute less outside of the window, but took longer in every size that was tried.
        self.pattern = LocalPattern(width, before=1, reach=width - 1)

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        qkv = self.whole.qkv(x).unflatten(-1, (3, self.whole.n_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return self.whole.out(local_attention(q, k, v, self.pattern).transpose(1, 2).flatten(2))


class RowMajorModel(nn.Module):
    """Logits of every value of a picture from those before it, in one sequence: channel, row, column.

    Blocks, embeddings, positions and start are those of the axial model; only the attention differs.
    Shapes: images (batch, channels, height, width) -> logits (batch, channels, height, width, n_values).
    window: how many values a block sees; None for all of them.
    """

    def __init__(self, cfg: AxialImageConfig, layers: int, window: int | None = None) -> None:
        super().__init__()
        self.cfg = cfg
        self.embedding = nn.Embedding(cfg.n_values, cfg.dim)
        nn.init.normal_(self.embedding.weight, std=cfg.embedding_std)
        self.position = GridPosition(cfg.height, cfg.width, cfg.dim, cfg.embedding_std)
        self.channel = nn.Parameter(cfg.embedding_std * torch.randn(cfg.channels, cfg.dim))
        self.blocks = nn.ModuleList(
            AttentionBlock(
                LineAttention(cfg.dim, cfg.n_heads, causal=True)
                if window is None
                else LocalLineAttention(cfg.dim, cfg.n_heads, window),
                cfg.dim,
                hdim_factor=cfg.hdim_factor,
                dropout=cfg.dropout,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(cfg.dim, eps=1e-5)
        self.to_logits = nn.Linear(cfg.dim, cfg.n_values)
        scaled_normal_(self.to_logits, ZERO_SCALE)

    def forward(
        self, images: Integer[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width n_values"]:
        places = (self.channel[:, None, None] + self.position()).flatten(0, 2)
        before = F.pad(self.embedding(images.long().flatten(1))[:, :-1], (0, 0, 1, 0))
        x = before + places
        for block in self.blocks:
            x = block(x)
        return self.to_logits(self.norm(x)).view(*images.shape, -1)

    def loss(
        self, images: Integer[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats; `generator` is not needed: all values are learnt from at once."""
        logits = self(images)
        return F.cross_entropy(logits.flatten(0, -2).float(), images.flatten().long())

    def step(self, x: Float[Tensor, "batch dim"], caches: list[LineCache]) -> Float[Tensor, "batch n_values"]:
        """Logits of one value from its place plus the embedded one before it; without a window only."""
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block.step(x, cache)  # type: ignore[operator]
        return self.to_logits(self.norm(x))
