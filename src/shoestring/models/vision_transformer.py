"""A plain vision transformer (DeiT's shape), with attention as it was first written or fused.

Source: Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention",
table 1; Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", eq. 1-4.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.layers.drop_path import DropPath, depth_rates
from shoestring.layers.parameter_hint import ParameterHint
from shoestring.layers.patch_embedding import PatchEmbedding
from shoestring.layers.patch_tokens import ClassToken, PatchTokens

Heads = Float[Tensor, "batch heads tokens head_dim"]
Attention = Callable[[Heads, Heads, Heads], Heads]


def explicit_attention(q: Heads, k: Heads, v: Heads) -> Heads:
    """softmax(q kᵀ / √head_dim) v with the matrix of scores in memory, as vision transformers had it."""
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1) @ v


def fused_attention(q: Heads, k: Heads, v: Heads) -> Heads:
    """The same by torch's fused kernel, which never holds the scores."""
    return F.scaled_dot_product_attention(q, k, v)


@dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig:
    """Sizes; the defaults are DeiT-Ti's. Raises: ValueError for heads that do not divide dim."""

    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    patch_size: int = 16
    dim: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: float = 4.0
    n_classes: int = 1000
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.heads < 1 or self.dim % self.heads:
            raise ValueError(f"heads={self.heads} do not divide dim={self.dim}")
        if self.depth < 1:
            raise ValueError(f"depth={self.depth} must be at least 1")


class VisionTransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); (batch, tokens, dim) to the same."""

    def __init__(self, config: VisionTransformerConfig, attention: Attention, drop_path: float) -> None:
        super().__init__()
        dim, hidden = config.dim, int(config.dim * config.mlp_ratio)
        self.heads, self.attention = config.heads, attention
        self.norm1, self.norm2 = (undecayed(nn.LayerNorm(dim, 1e-6)) for _ in range(2))
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = self.attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.drop_path(self.out(mixed))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """images (batch, channels, height, width) -> logits (batch, n_classes), by a class token at the head.

    attention: `fused_attention` or `explicit_attention`. Raises: as `PatchTokens`.
    """

    def __init__(self, config: VisionTransformerConfig, attention: Attention = fused_attention) -> None:
        super().__init__()
        self.config = config
        embedding = PatchEmbedding(config.channels, config.dim, config.patch_size)
        self.tokens = PatchTokens(config.image_size, embedding, ClassToken.HEAD)
        rates = depth_rates(config.drop_path, config.depth)
        self.blocks = nn.ModuleList(VisionTransformerBlock(config, attention, rate) for rate in rates)
        self.norm = undecayed(nn.LayerNorm(config.dim, 1e-6))
        self.head = nn.Linear(config.dim, config.n_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(
        self, images: Float[Tensor, "batch channels height width"], *, interpolate: bool = False
    ) -> Float[Tensor, "batch classes"]:
        return self.head(self.encode(images, interpolate=interpolate)[:, 0])

    def encode(
        self, images: Float[Tensor, "batch channels height width"], *, interpolate: bool = False
    ) -> Float[Tensor, "batch tokens dim"]:
        """The normalised sequence after the last block, class token first."""
        x = self.tokens(images, interpolate=interpolate).tokens
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def undecayed(norm: nn.Module) -> nn.Module:
    """The module, whose own parameters ask for no weight decay."""
    norm.parameter_hints = {  # type: ignore[assignment]
        name: ParameterHint(weight_decay=0.0) for name, _ in norm.named_parameters(recurse=False)
    }
    return norm
