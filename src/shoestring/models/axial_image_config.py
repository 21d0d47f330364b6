"""The shape of an Axial Transformer, with those that were published."""

from dataclasses import dataclass

__all__ = ["IMAGENET_32", "IMAGENET_64", "AxialImageConfig"]


@dataclass(frozen=True, kw_only=True)
class AxialImageConfig:
    """Pictures of channels x height x width values in 0 … n_values - 1, and the layers that model them.

    Layers of the encoder and the outer decoder come in pairs of a row and a column block. hdim_factor: hidden
    units of a block's mlp over `dim`. embedding_scale: deviation of fresh embeddings times sqrt(dim).
    Raises: ValueError for a size below 1, fewer than two values, an odd number of encoder or outer layers, no
    inner layer, an encoder missing with several channels or there with one, heads that do not divide `dim`.

    Source: Ho et al. 2019, "Axial Attention in Multidimensional Transformers", and the authors' code.
    """

    height: int
    width: int
    channels: int = 3
    n_values: int = 256
    dim: int = 64
    n_heads: int = 4
    encoder_layers: int = 2
    outer_layers: int = 2
    inner_layers: int = 2
    hdim_factor: float | int = 1
    dropout: float | int = 0.0
    embedding_scale: float | int = 5.0

    def __post_init__(self) -> None:
        for name in ("height", "width", "channels", "dim", "n_heads", "inner_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        if self.n_values < 2:
            raise ValueError(f"n_values={self.n_values} must be 2 or more")
        if self.dim % self.n_heads:
            raise ValueError(f"dim={self.dim} must be a multiple of n_heads={self.n_heads}")
        for name in ("encoder_layers", "outer_layers"):
            layers = getattr(self, name)
            if layers < 0 or layers % 2:
                raise ValueError(
                    f"{name}={layers} must be even: row and column blocks come in pairs; "
                    f"use {max(0, layers - 1)} or {max(0, layers + 1)}"
                )
        if self.outer_layers == 0:
            raise ValueError("outer_layers=0 hides the rows above; use 2 or more")
        if (self.channels > 1) != (self.encoder_layers > 0):
            raise ValueError(
                f"encoder_layers={self.encoder_layers} with channels={self.channels}: several channels need "
                "an encoder (2 layers or more), one channel has nothing to encode (0)"
            )
        if not self.embedding_scale > 0:
            raise ValueError(f"embedding_scale={self.embedding_scale} must be above 0")

    @property
    def embedding_std(self) -> float:
        """Standard deviation of fresh embeddings and position tables."""
        return self.embedding_scale / self.dim**0.5

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.height, self.width


IMAGENET_32 = AxialImageConfig(
    height=32, width=32, dim=1536, n_heads=16, encoder_layers=8, outer_layers=8, inner_layers=8, dropout=0.04
)
"""Trained with Adam at 1e-4 (5000 steps of warm-up, then constant), batch 64, gradients clipped at 1, and
judged with weights averaged at a decay of 0.99995."""

IMAGENET_64 = AxialImageConfig(
    height=64, width=64, dim=2048, n_heads=16, encoder_layers=8, outer_layers=8, inner_layers=8
)
"""As `IMAGENET_32`, at 2e-4 and without dropout. How many heads it had is not confirmed; 16 is taken."""
