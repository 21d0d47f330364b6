"""A learned embedding of each position of a picture, as the sum of two tables."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class GridPosition(nn.Module):
    """A table of rows plus a table of columns; std: the deviation of their fresh entries.

    Source: Ho et al. 2019, "Axial Attention in Multidimensional Transformers", section 3.
    """

    def __init__(self, height: int, width: int, dim: int, std: float | int) -> None:
        super().__init__()
        self.rows = nn.Parameter(std * torch.randn(height, dim))
        self.columns = nn.Parameter(std * torch.randn(width, dim))

    def forward(self) -> Float[Tensor, "height width dim"]:
        return self.rows[:, None] + self.columns[None]
