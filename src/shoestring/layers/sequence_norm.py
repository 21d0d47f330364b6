"""Norms over sequences (batch, seq, dim), by name."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

NORMS = ("layer", "batch", "scale")


class ScaleNorm(nn.Module):
    """y = weight · x / sqrt(mean(x²) + eps), one trained number for all features.

    Source: Nguyen & Salazar 2019, "Transformers without Tears", eq. 5, scaled so that it starts at 1 as in
    Mega.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps) * self.weight


class ChannelBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of each feature over batch and time, pads among them."""

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def sequence_norm(kind: str, d_model: int) -> nn.Module:
    """ "layer": of each token; "batch": of each feature; "scale": of each token, one gain.

    Raises: ValueError for another kind.
    """
    if kind == "layer":
        return nn.LayerNorm(d_model)
    if kind == "batch":
        return ChannelBatchNorm(d_model)
    if kind == "scale":
        return ScaleNorm()
    raise ValueError(f"norm={kind!r}; use one of {', '.join(map(repr, NORMS))}")
