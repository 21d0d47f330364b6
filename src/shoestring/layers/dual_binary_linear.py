"""Linear layers on two binary planes: packed for inference, and with latent weights for training.

Source: Chen et al. 2024, "DB-LLM", section 3.2. Which gradients the authors take is not published: the
default keeps the planes fixed while the levels are differentiated, and lets the gradient of the weights
through unchanged.
"""

import enum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.kernels.dual_binary import RUN, Method, PlaneWeights, dual_binary_linear
from shoestring.kernels.linear_kernel import LinearKernel
from shoestring.numbers.dual_binary import LEAST_ORDER, DualBinary, Planes, pack_planes
from shoestring.numbers.packing import packed_bytes

KERNEL_TOKENS = 8
"""Rows of x up to which the planes are used as they are; more are multiplied by the dequantised matrix."""


class DualBinaryLinear(nn.Module):
    """y = x Wᵀ + b with W = a₁·b₁ + a₂·b₂. Shapes: x (…, in_features) -> y (…, out_features).

    Stored: `first` and `second`, a bit for each weight, and `levels` (out, groups, 2) in float16. Gradients
    flow to x, not to the weight: `LatentDualBinaryLinear` is for training.

    Raises: ValueError for inputs that are not whole groups.
    """

    def __init__(
        self,
        form: DualBinary,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if reason := form.why_not("in_features", in_features):
            raise ValueError(reason)
        self.form, self.in_features, self.out_features = form, in_features, out_features
        self.dtype = dtype or torch.get_default_dtype()
        bytes_ = packed_bytes(in_features, 1)
        for name in ("first", "second"):
            self.register_buffer(name, torch.zeros(out_features, bytes_, dtype=torch.uint8, device=device))
        groups = form.groups(in_features)
        levels = torch.zeros(out_features, groups, 2, dtype=torch.float16, device=device)
        self.register_buffer("levels", levels)
        empty = torch.zeros(out_features, dtype=self.dtype, device=device)
        self.bias = nn.Parameter(empty, requires_grad=False) if bias else None
        self._weights: PlaneWeights | None = None

    @classmethod
    def of(
        cls,
        form: DualBinary,
        planes: Planes,
        levels: Float[Tensor, "rows groups 2"],
        bias: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> "DualBinaryLinear":
        """A layer with these planes and levels, which are rounded to float16."""
        rows, cols = planes[0].shape
        layer = cls(form, cols, rows, bias=bias is not None, dtype=dtype, device=levels.device)
        layer.first, layer.second = pack_planes(planes)
        layer.levels = levels.half()
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        return layer

    @property
    def stored(self) -> PlaneWeights:
        """What the kernels take; kept as long as the tensors stay the same."""
        assert isinstance(self.first, Tensor)
        assert isinstance(self.second, Tensor)
        assert isinstance(self.levels, Tensor)
        kept = self._weights
        if kept is None or kept.first is not self.first or kept.levels is not self.levels:
            size = self.in_features, self.form.group_size
            kept = self._weights = PlaneWeights(self.first, self.second, self.levels, *size)
        return kept

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The matrix, dequantised anew at each access."""
        return self.stored.dequantise(self.dtype)

    def kernel(self) -> LinearKernel | None:
        """What a decode step calls; None where the planes are elsewhere or their groups are no whole runs."""
        assert isinstance(self.first, Tensor)
        if self.first.device.type != "cpu" or self.form.group_size % RUN:
            return None
        return self.stored.kernel(self.bias)

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        tokens = x.numel() // self.in_features
        graph = torch.is_grad_enabled() and x.requires_grad
        method = Method.MASKED if self.form.group_size % RUN else Method.LOOKUP
        if tokens > KERNEL_TOKENS or graph or device != "cpu" or self.form.group_size % 8:
            y = F.linear(x, self.stored.dequantise(x.dtype))
        else:
            y = dual_binary_linear(x, self.stored, method)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, group_size={self.form.group_size}"

    def _apply(self, fn: Any, recurse: bool = True) -> "DualBinaryLinear":
        # `.to(dtype)` would round the float16 levels: move them as bit patterns instead.
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        assert isinstance(self.levels, Tensor)
        self._buffers["levels"] = self.levels.view(torch.int16)
        super()._apply(fn, recurse)
        bits = self._buffers["levels"]
        assert bits is not None
        self._buffers["levels"] = bits.view(torch.float16)
        return self


class LevelGradient(enum.Enum):
    """PRIMARY: planes are constants to the levels. THROUGH: the straight-through steps depend on them too."""

    PRIMARY = "primary"
    THROUGH = "through"


class LatentDualBinaryLinear(nn.Module):
    """The same in training: full-precision latent weights choose the planes, levels are a₀·(1 + θ).

    `latent` (out, in) and `theta` (out, groups, 2) are float32 parameters; call `project` after every step of
    the optimizer. clip: let the gradient of the latent weights through only within the outer levels.
    """

    def __init__(
        self,
        form: DualBinary,
        weight: Float[Tensor, "out in"],
        levels: Float[Tensor, "out groups 2"],
        bias: Tensor | None = None,
        *,
        gradient: LevelGradient = LevelGradient.PRIMARY,
        clip: bool = False,
    ) -> None:
        super().__init__()
        self.form, self.gradient, self.clip = form, gradient, clip
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.latent = nn.Parameter(weight.detach().float().clone())
        self.theta = nn.Parameter(torch.zeros_like(levels, dtype=torch.float32))
        self.register_buffer("first_levels", levels.detach().float().clone(), persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    @property
    def levels(self) -> Float[Tensor, "out groups 2"]:
        """a₁ and a₂ as they are now."""
        assert isinstance(self.first_levels, Tensor)
        return self.first_levels * (1 + self.theta)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """ŵ, with its straight-through gradients."""
        if self.gradient is LevelGradient.THROUGH:
            return through_steps(self.form, self.latent, self.levels)
        return _Binarize.apply(self.latent, self.levels, self.form, self.clip)

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(x.to(dtype), self.weight.to(dtype), bias)

    @torch.no_grad()
    def project(self) -> None:
        """Put the levels back in order, which keeps the planes those of the nearest level."""
        assert isinstance(self.first_levels, Tensor)
        floor = LEAST_ORDER * self.first_levels[..., 1].abs()
        projected = self.form.project(self.levels, floor)
        safe = torch.where(self.first_levels == 0, 1.0, self.first_levels)
        self.theta.copy_(torch.where(self.first_levels == 0, 0.0, projected / safe - 1))

    @torch.no_grad()
    def pack(self) -> DualBinaryLinear:
        """The layer for inference: levels rounded to float16, planes of the latent weights."""
        levels = self.levels.half().float()
        planes = self.form.assign(self.latent, levels)
        return DualBinaryLinear.of(self.form, planes, levels, self.bias, self.dtype)


class _Binarize(torch.autograd.Function):
    """ŵ of latent weights; ∂L/∂a = Σ over the group of G·b, and G itself for the latent weights."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, levels: Tensor, form: DualBinary, clip: bool) -> Tensor:
        planes = form.assign(latent, levels)
        ctx.form, ctx.clip = form, clip
        ctx.save_for_backward(*planes, *((latent, levels) if clip else ()))
        return form.decode(planes, levels)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad,) = grads
        first, second, *rest = ctx.saved_tensors
        shape = grad.shape[0], -1, ctx.form.group_size
        parts = [(grad * plane).reshape(shape).sum(-1) for plane in (first, second)]
        if ctx.clip:
            latent, levels = rest
            low, high = levels.amin(-1, keepdim=True), levels.amax(-1, keepdim=True)
            within = latent.reshape(shape)
            grad = grad * ((within >= low) & (within <= high)).reshape(grad.shape)
        return grad, torch.stack(parts, -1), None, None


class _Step(torch.autograd.Function):
    """H(t) forward, dH/dt = 1 backward."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return (t >= 0).to(t.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def through_steps(
    form: DualBinary, latent: Float[Tensor, "out in"], levels: Float[Tensor, "out groups 2"]
) -> Float[Tensor, "out in"]:
    """ŵ with gradients through both steps as autograd finds them."""
    w = latent.reshape(latent.shape[0], -1, form.group_size)
    a1, a2 = (part[..., None] for part in levels.unbind(-1))
    sign = torch.where(a1 < 0, -1.0, 1.0)
    w, p1, p2 = w * sign, a1 * sign, a2 * sign
    first = _Step.apply(w - (p1 + p2) / 2)
    second = _Step.apply(p1 * first + p2 / 2 - w)
    return (a1 * first + a2 * second).reshape(latent.shape)
