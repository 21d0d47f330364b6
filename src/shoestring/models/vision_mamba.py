"""Vision Mamba: an image backbone of bidirectional selective scans; time and memory linear in the patches.

Source: Zhu et al. 2024, "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State
Space Model", sections 3.2-3.4, table 1.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoestring.layers.bidirectional_mamba import BidirectionalMamba, SharedBidirectionalMamba
from shoestring.layers.bidirectional_mamba2 import BidirectionalMamba2
from shoestring.layers.drop_path import DropPath, depth_rates
from shoestring.layers.mamba import MambaMixer
from shoestring.layers.norm import RMSNorm
from shoestring.layers.parameter_hint import ParameterHint
from shoestring.layers.patch_embedding import PatchEmbedding
from shoestring.layers.patch_tokens import PatchTokens, TokenSequence, place, without
from shoestring.layers.rotary_grid import rotate_grid
from shoestring.models.vision_mamba_config import Direction, Pooling, Scan, VisionMambaConfig

Images = Float[Tensor, "batch channels height width"]
Hidden = Float[Tensor, "batch tokens dim"]


class VisionMambaBlock(nn.Module):
    """Add, norm, mix: residual += hidden, hidden = mixer(norm(residual)). The residual is float32 or wider.

    reverse: the mixer, which then must be one of a single direction, reads from the last token to the first.
    """

    def __init__(self, dim: int, mixer: nn.Module, drop_path: float, *, reverse: bool = False) -> None:
        super().__init__()
        self.norm, self.mixer, self.drop_path = _norm(dim), mixer, DropPath(drop_path)
        self.reverse = reverse

    def forward(self, hidden: Hidden, residual: Hidden | None) -> tuple[Hidden, Hidden]:
        residual = add(hidden, residual, self.drop_path)
        normed = self.norm(residual.to(self.norm.weight.dtype))
        hidden = self.mixer(normed, reverse=True) if self.reverse else self.mixer(normed)
        return hidden, residual


class VisionMamba(nn.Module):
    """images (batch, channels, height, width) -> logits (batch, n_classes).

    A picture of another size than the configured one is read with interpolate=True, by resized positions.
    Raises: ValueError for such a picture without it, one that patches do not fill, or other channels.
    """

    def __init__(self, config: VisionMambaConfig) -> None:
        super().__init__()
        self.config = config
        embedding = PatchEmbedding(config.channels, config.dim, config.patch_size, config.stride)
        self.tokens = PatchTokens(config.image_size, embedding, config.class_token, config.dropout)
        rates = depth_rates(config.drop_path, config.depth)
        alternates = config.direction is Direction.ALTERNATING
        self.blocks = nn.ModuleList(
            VisionMambaBlock(config.dim, _mixer(config), rate, reverse=alternates and bool(number % 2))
            for number, rate in enumerate(rates)
        )
        self.drop_path = DropPath(config.drop_path)
        self.norm = _norm(config.dim)
        self.head = nn.Linear(config.dim, config.n_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        for block in self.blocks:
            out_proj = block.mixer.out_proj  # type: ignore[union-attr]
            with torch.no_grad():
                out_proj.weight /= config.depth**0.5  # type: ignore[union-attr]

    def forward(self, images: Images, *, interpolate: bool = False) -> Float[Tensor, "batch classes"]:
        return self.head(self.pool(*self.encode(images, interpolate=interpolate)))

    def encode(
        self, images: Images, *, interpolate: bool = False
    ) -> tuple[Float[Tensor, "batch tokens dim"], tuple[int, ...]]:
        """The normalised sequence after the last block, and where its class tokens are."""
        sequence = self.tokens(images, interpolate=interpolate)
        hidden, residual = sequence.tokens, None
        for block in self.blocks:
            hidden, residual = block(self._turned(hidden, sequence), residual)
        last = add(hidden, residual, self.drop_path)
        return self.norm(last.to(self.norm.weight.dtype)), sequence.slots

    def _turned(self, hidden: Hidden, sequence: TokenSequence) -> Hidden:
        return _rotated(hidden, sequence) if self.config.rotary else hidden

    def pool(self, encoded: Hidden, slots: tuple[int, ...]) -> Float[Tensor, "batch dim"]:
        """The class token, the average of several, or that of all patches."""
        if self.config.pooling is Pooling.MEAN:
            return encoded.mean(1)
        return encoded[:, list(slots)].mean(1)

    def features(
        self, images: Images, after: Sequence[int] = (5, 11, 17, 23), *, interpolate: bool = False
    ) -> list[Float[Tensor, "batch dim rows columns"]]:
        """Maps of the patches after the given blocks (counted from 0), for dense prediction.

        The class token is taken out where it stands. Raises: ValueError for a block that is not there.
        """
        if any(not 0 <= number < len(self.blocks) for number in after):
            raise ValueError(f"after={tuple(after)}; there are blocks 0 to {len(self.blocks) - 1}")
        sequence = self.tokens(images, interpolate=interpolate)
        hidden, residual, maps = sequence.tokens, None, {}
        for number, block in enumerate(self.blocks):
            hidden, residual = block(self._turned(hidden, sequence), residual)
            if number in after:
                maps[number] = _map(residual + hidden, sequence)
            if number == max(after, default=-1):
                break
        return [maps[number] for number in after]


def _rotated(hidden: Hidden, sequence: TokenSequence) -> Hidden:
    """The patches turned by their rows and columns, the class tokens as they are."""
    tokens = hidden[:, list(sequence.slots)]
    patches = rotate_grid(without(hidden, sequence.slots), sequence.grid)
    return place(tokens, patches, sequence.slots)


def add(hidden: Hidden, residual: Hidden | None, drop_path: DropPath) -> Hidden:
    """The residual stream after a block's output, in at least float32; the first block's input starts it."""
    if residual is None:
        return hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    return residual + drop_path(hidden)


def _map(x: Hidden, sequence: TokenSequence) -> Float[Tensor, "batch dim rows columns"]:
    return without(x, sequence.slots).transpose(1, 2).unflatten(2, sequence.grid)


def _norm(dim: int) -> RMSNorm:
    norm = RMSNorm(dim, 1e-5)
    norm.parameter_hints = {"weight": ParameterHint(weight_decay=0.0)}  # type: ignore[assignment]
    return norm


def _mixer(config: VisionMambaConfig) -> nn.Module:
    sizes = {"d_state": config.d_state, "d_conv": config.d_conv, "expand": config.expand}
    if config.scan is Scan.SSD:
        return BidirectionalMamba2(config.dim, **sizes, head_dim=config.head_dim, divide=config.divide)
    if config.direction is Direction.BOTH:
        return BidirectionalMamba(
            config.dim, **sizes, divide=config.divide, layer_scale=config.layer_scale,
            original_init=config.original_init,
        )  # fmt: skip
    if config.direction is Direction.SHARED:
        return SharedBidirectionalMamba(config.dim, **sizes, divide=config.divide)
    return MambaMixer(config.dim, **sizes)
