"""What the tokens of a layer have in common, as a moving average over training passes.

A router that reads W m is dominated by it: silu(EMA(x)) has a large mean that all tokens share, so W m has one
sign for nearly all of them, which drifts as the layers below learn, and a step that favours one token favours
all. W (m − mean) + b is the same function with another bias, in which tokens move against one another.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

RATE = 0.1
"""Weight of the newest pass."""


class TokenMean(nn.Module):
    """x (batch, seq, dim) -> the mean token of the passes before, (dim,), without gradient.

    Only training passes count, each after it was answered; the first is answered with its own mean. So but for
    the first, what one token is compared with does not depend on its neighbours.
    """

    mean: Tensor
    passes: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(
        self, x: Float[Tensor, "batch seq dim"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, " dim"]:
        """mask: True for tokens, False for pads, which do not count."""
        before = self.mean
        if self.training:
            tokens = (x.flatten(0, 1) if mask is None else x[mask]).to(before.dtype)
            newest = tokens.mean(0)
            if int(self.passes) == 0:
                before = newest
            self.mean = before.lerp(newest, RATE)
            self.passes += 1
        return before
