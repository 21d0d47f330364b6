"""A linear layer as the product of two thin ones: a linear encoder and decoder.

Source: Winata et al. 2020, "Lightweight and Efficient End-to-End Speech Recognition Using Low-Rank
Transformer", section 2.1.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def break_even_rank(in_features: int, out_features: int) -> int:
    """The rank r* from which two factors are no smaller than the matrix: ⌊m n / (m + n)⌋."""
    return in_features * out_features // (in_features + out_features)


class LowRankLinear(nn.Module):
    """y = (x Aᵀ) Bᵀ + b with A (rank, in_features) and B (out_features, rank).

    Shapes: x (…, in_features) -> y (…, out_features). A new layer draws A from a normal distribution of
    standard deviation in_features^−½ and B as `nn.Linear` does, so that it can be trained from scratch.

    Raises: ValueError for a rank below 1.
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
        if rank < 1:
            raise ValueError(f"rank={rank} must be at least 1.")
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.down = nn.Linear(in_features, rank, bias=False, dtype=dtype, device=device)
        self.up = nn.Linear(rank, out_features, bias=bias, dtype=dtype, device=device)
        nn.init.normal_(self.down.weight, std=in_features**-0.5)

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


def linear_of_rank(
    in_features: int, out_features: int, rank: int | None, *, bias: bool = True
) -> LowRankLinear | nn.Linear:
    """A new linear layer: of this rank, or full where `rank` is None. Raises: ValueError for rank < 1."""
    if rank is None:
        return nn.Linear(in_features, out_features, bias=bias)
    return LowRankLinear(in_features, out_features, rank, bias=bias)


def naive_low_rank_linear(
    x: Float[Tensor, "*batch in_features"],
    down: Float[Tensor, "rank in_features"],
    up: Float[Tensor, "out_features rank"],
    bias: Float[Tensor, " out_features"] | None = None,
) -> Float[Tensor, "*batch out_features"]:
    """x (B A)ᵀ + b, with the matrix built: the meaning of `LowRankLinear`."""
    y = x @ (up @ down).T
    return y if bias is None else y + bias
