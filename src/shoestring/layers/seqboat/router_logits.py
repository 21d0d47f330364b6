"""What a router decides from: two numbers a token, skip and run, linear in the token.

Tokens of silu(EMA(x)) share a large mean. It gives W m one sign for nearly all of them, a sign that drifts as
the layers below learn, so a layer falls silent or runs everywhere by chance; and since the gradient of W is a
sum over tokens, a step that favours some of them favours all. W (m − mean) + b is the same function with
another bias, in which what raises some tokens lowers the others. The bias, which raises all, is the largest
feature and learns fastest; scaled down it follows the choice among tokens instead of preceding it. And while
attention has learnt nothing yet, the gradient is noise, which Adam turns into steps of full length: an ε that
it stays below keeps a router still until attention makes a difference.

Source: Ren et al. 2023, "Sparse Modular Activation for Efficient Sequence Modeling", section 3.2 (the linear
map); the mean, the scale of the bias and the floor are ours.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.layers.parameter_hint import ParameterHint

MEAN_RATE = 0.1
"""Weight of the newest pass in the moving mean."""
BIAS_SCALE = 0.1
"""What the bias counts beside a centred token: how many times slower a step moves all tokens together."""


class RouterLogits(nn.Linear):
    """m (batch, seq, d_model) -> W m + b, (batch, seq, 2), or `centred` W (m − mean) + b / 10.

    mean: moving average over training passes of the mean token, without gradient. A pass is answered with
    that of the passes before (the first with its own): the logits of a token do not depend on its neighbours.
    gradient_floor: `ParameterHint.adam_eps` of W and b. `fold` leaves a plain linear map.
    """

    mean: Tensor
    passes: Tensor

    def __init__(self, d_model: int, *, centred: bool = False, gradient_floor: float = 0.0) -> None:
        super().__init__(d_model, 2)
        nn.init.trunc_normal_(self.weight, std=0.02, a=-0.04, b=0.04)
        nn.init.zeros_(self.bias)
        self.centred = centred
        self.register_buffer("mean", torch.zeros(d_model))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        if gradient_floor:
            hint = ParameterHint(adam_eps=gradient_floor)
            self.parameter_hints = {"weight": hint, "bias": hint}

    def forward(
        self, m: Float[Tensor, "batch seq d_model"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq options"]:
        """mask: True for tokens, False for pads, which the mean does not count."""
        if not self.centred:
            return super().forward(m)
        mean = self._mean_before(m, mask).to(m.dtype)
        return F.linear(m, self.weight, BIAS_SCALE * self.bias - self.weight @ mean)

    @torch.no_grad()
    def fold(self) -> None:
        """Move the mean into the bias: the same logits, from a linear map as in the paper."""
        if self.centred:
            self.bias.mul_(BIAS_SCALE).sub_(self.weight @ self.mean.to(self.weight.dtype))
            self.centred = False

    @torch.no_grad()
    def _mean_before(self, m: Tensor, mask: Tensor | None) -> Tensor:
        before = self.mean
        if self.training:
            newest = (m.flatten(0, 1) if mask is None else m[mask]).to(before.dtype).mean(0)
            if int(self.passes) == 0:
                before = newest
            self.mean = before.lerp(newest, MEAN_RATE)
            self.passes += 1
        return before
