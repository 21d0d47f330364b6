"""Uniform integer quantisation, symmetric or not, per tensor or per channel.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", section 2.1.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class IntegerFormat:
    """Integers of `bits` bits: symmetric, ±(2^(bits−1) − 1) in two's complement; else 0 .. 2^bits − 1.

    Raises: ValueError for bits outside 1..16 (2..16 if symmetric).
    """

    bits: int
    symmetric: bool = True

    def __post_init__(self) -> None:
        least = 2 if self.symmetric else 1
        if not least <= self.bits <= 16:
            raise ValueError(f"bits={self.bits}: an integer format has {least} to 16 bits")

    @property
    def qmin(self) -> int:
        return -self.qmax if self.symmetric else 0

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.symmetric else (1 << self.bits) - 1


@dataclass(frozen=True)
class IntegerScaling:
    """x ≈ scale · (q − zero_point); both scalars, or of the shape that broadcasts along the channel axis."""

    scale: Float[Tensor, "..."]
    zero_point: Int[Tensor, "..."]


def scaling_of_range(
    low: Float[Tensor, "*channels"], high: Float[Tensor, "*channels"], fmt: IntegerFormat
) -> IntegerScaling:
    """The scaling that makes the range low..high, widened to hold 0, just fit `fmt`.

    Symmetric: s = max|x| / qmax, z = 0. Else: s = (max − min) / (qmax − qmin), z = round(qmin − min/s).
    A range of nothing but zero has s = 1.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    if fmt.symmetric:
        scale = torch.maximum(-low, high) / fmt.qmax
    else:
        scale = high / (fmt.qmax - fmt.qmin) - low / (fmt.qmax - fmt.qmin)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    if fmt.symmetric:
        return IntegerScaling(scale, torch.zeros_like(scale, dtype=torch.int32))
    zero_point = (fmt.qmin - low / scale).round().clamp(fmt.qmin, fmt.qmax).to(torch.int32)
    return IntegerScaling(scale, zero_point)


class IntegerQuantizer:
    """Quantises tensors to `fmt` with one scaling, calibrated on the first call or by `calibrate`.

    `axis`: one scaling per index of this axis; None: one for the tensor. `name` stands in error messages.

    Raises: ValueError for NaN or infinity in a calibration batch, an empty batch or iterator, or an axis
    out of range; TypeError for tensors that are not floating point.
    """

    def __init__(self, fmt: IntegerFormat, *, axis: int | None = None, name: str = "tensor") -> None:
        self.fmt = fmt
        self.axis = axis
        self.name = name
        self.scaling: IntegerScaling | None = None

    def calibrate(self, batches: Iterable[Float[Tensor, "..."]]) -> IntegerScaling:
        """Set the scaling from the range over all batches, and return it."""
        low: Tensor | None = None
        high: Tensor | None = None
        for batch in batches:
            batch_low, batch_high = self._range(batch)
            low = batch_low if low is None else torch.minimum(low, batch_low)
            high = batch_high if high is None else torch.maximum(high, batch_high)
        if low is None or high is None:
            raise ValueError(f"{self.name!r}: the calibration iterator is empty; give at least one batch")
        self.scaling = scaling_of_range(low, high, self.fmt)
        return self.scaling

    def quantize(self, x: Shaped[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """q = clip(round(x/s + z)) as int32; the first call calibrates on `x` if nothing has before.

        Raises: ValueError for NaN, which no integer stands for, or a tensor on another device than the one
        that was calibrated on.
        """
        self._check(x)
        scaling = self.scaling or self.calibrate([x])
        # Torch takes a scalar on the CPU beside a tensor anywhere.
        here = x.device, torch.device("cpu") if scaling.scale.ndim == 0 else x.device
        if scaling.scale.device not in here:
            raise ValueError(
                f"{self.name!r} was calibrated on {scaling.scale.device} and x is on {x.device}; move one of "
                f"them"
            )
        if bool(torch.isnan(x).any()):
            raise ValueError(f"{self.name!r} holds a NaN, which has no integer code")
        q = (x / scaling.scale + scaling.zero_point).round()
        return q.clamp(self.fmt.qmin, self.fmt.qmax).to(torch.int32)

    def dequantize(self, q: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """s · (q − z).

        Raises: ValueError before any calibration.
        """
        if self.scaling is None:
            raise ValueError(f"{self.name!r} is not calibrated; call calibrate or quantize first")
        return self.scaling.scale * (q - self.scaling.zero_point)

    def __call__(self, x: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Quantised and dequantised: same dtype and shape."""
        return self.dequantize(self.quantize(x)).to(x.dtype)

    def _range(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        self._check(batch)
        if batch.numel() == 0:
            raise ValueError(f"{self.name!r}: a calibration batch of shape {tuple(batch.shape)} is empty")
        if not bool(torch.isfinite(batch).all()):
            raise ValueError(f"{self.name!r}: a calibration batch holds NaN or infinity; no range covers it")
        batch = batch.detach()
        if self.axis is None:
            return batch.amin(), batch.amax()
        others = [axis for axis in range(batch.ndim) if axis != self.axis % batch.ndim]
        if not others:
            return batch, batch
        return batch.amin(others, keepdim=True), batch.amax(others, keepdim=True)

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = getattr(x, "dtype", type(x).__name__)
            raise TypeError(f"{self.name!r} must be a floating-point tensor, not {kind}; cast explicitly")
        if self.axis is not None and not -x.ndim <= self.axis < x.ndim:
            raise ValueError(f"{self.name!r}: axis={self.axis} is out of range for {x.ndim} axes")
