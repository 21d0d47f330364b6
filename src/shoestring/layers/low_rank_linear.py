"""A linear layer as the product of two thin ones."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """y = (x Aᵀ) Bᵀ + b with A (rank, in_features) and B (out_features, rank).

    Shapes: x (…, in_features) -> y (…, out_features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.down = nn.Linear(in_features, rank, bias=False, dtype=dtype, device=device)
        self.up = nn.Linear(rank, out_features, bias=bias, dtype=dtype, device=device)

    @classmethod
    def of(
        cls,
        down: Float[Tensor, "rank in_features"],
        up: Float[Tensor, "out_features rank"],
        bias: Float[Tensor, " out_features"] | None = None,
    ) -> "LowRankLinear":
        """A layer with these factors."""
        rank, in_features = down.shape
        layer = cls(in_features, up.shape[0], rank, bias=bias is not None, dtype=down.dtype, device="meta")
        layer.down.weight, layer.up.weight = nn.Parameter(down.contiguous()), nn.Parameter(up.contiguous())
        if bias is not None:
            layer.up.bias = nn.Parameter(bias.detach().clone())
        return layer

    @property
    def weight(self) -> Float[Tensor, "out_features in_features"]:
        """The product of the factors."""
        return self.up.weight @ self.down.weight

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        return self.up(self.down(x))
