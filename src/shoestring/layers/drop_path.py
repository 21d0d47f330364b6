"""Stochastic depth: in training, a sample skips a block.

Source: Huang et al. 2016, "Deep Networks with Stochastic Depth", section 3.
"""

import torch
from jaxtyping import Shaped
from torch import Tensor, nn


class DropPath(nn.Module):
    """x for a share 1 - rate of the samples, divided by it, and 0 for the others; x itself in evaluation.

    Draws from torch's global generator, as dropout does. Shapes: (batch, ...) to the same.
    Raises: ValueError for a rate outside [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"rate={rate} must be at least 0 and below 1")
        self.rate = rate

    def forward(self, x: Shaped[Tensor, "batch *dims"]) -> Shaped[Tensor, "batch *dims"]:
        if self.rate == 0 or not self.training:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.rate}"


def depth_rates(largest: float, depth: int) -> list[float]:
    """Rates that grow linearly from 0 in the first block to `largest` in the last."""
    return [largest * block / max(depth - 1, 1) for block in range(depth)]
