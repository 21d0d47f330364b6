"""Root mean square normalisation.

Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x²) + eps) · (offset + weight).

    offset: 1 where a checkpoint stores the gain's distance from 1, as those of Gemma do, else 0.
    Shapes: x (…, dim) -> y (…, dim).
    """

    def __init__(
        self,
        dim: int,
        eps: float = 1e-6,
        *,
        offset: float = 0.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.full((dim,), 1.0 - offset, dtype=dtype, device=device))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        # In half precision 1 + weight would lose what is stored: it is added in float32.
        gain = self.weight if self.offset == 0.0 else self.weight.to(_at_least_float32(x)) + self.offset
        if _flows_no_gradient(x, gain):
            # torch's own steps in one piece of memory: on a long prompt fresh memory costs more than sums.
            y = x.square()
            scale = y.mean(-1, keepdim=True).add_(self.eps).rsqrt_()
            return torch.mul(x, scale, out=y).mul_(gain)
        if gain.dtype == x.dtype:
            return F.rms_norm(x, gain.shape, gain, self.eps)
        return F.rms_norm(x.to(gain.dtype), gain.shape, gain, self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}, offset={self.offset}"


def naive_rms_norm(
    x: Float[Tensor, "*batch dim"], weight: Float[Tensor, " dim"], eps: float, offset: float = 0.0
) -> Float[Tensor, "*batch dim"]:
    """The equation."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * (offset + weight)


def _flows_no_gradient(x: Tensor, gain: Tensor) -> bool:
    """Whether x is of float32 or wider on the CPU, like its gain, and no gradient flows."""
    plain = x.dtype == gain.dtype and x.dtype in (torch.float32, torch.float64) and x.device.type == "cpu"
    return plain and not (torch.is_grad_enabled() and (x.requires_grad or gain.requires_grad))


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
