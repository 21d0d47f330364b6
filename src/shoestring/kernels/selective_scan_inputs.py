"""What a selective scan is given, and whether it belongs together."""

from typing import NamedTuple

import torch
from torch import Tensor


class ScanOptions(NamedTuple):
    """softplus: of dt + dt_bias. reverse: from the last position to the first."""

    softplus: bool
    reverse: bool


class ScanInputs(NamedTuple):
    """The tensors of `selective_scan`, in its order."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    dt_bias: Tensor | None = None
    initial: Tensor | None = None

    def to(self, dtype: torch.dtype) -> "ScanInputs":
        """All of one type."""
        return ScanInputs(*(None if part is None else part.to(dtype) for part in self))  # type: ignore[arg-type]

    def check(self) -> None:
        """Raises: as `selective_scan`."""
        batch, seq, channels = self.x.shape
        states = self.A.shape[-1]
        if seq == 0:
            raise ValueError(f"x is {tuple(self.x.shape)}; a scan needs a seq of at least 1")
        wanted: dict[str, tuple[int, ...]] = {
            "dt": (batch, seq, channels), "A": (channels, states), "D": (channels,),
            "z": (batch, seq, channels), "dt_bias": (channels,), "initial": (batch, channels, states),
        }  # fmt: skip
        for name, shape in wanted.items():
            part = getattr(self, name)
            if part is not None and tuple(part.shape) != shape:
                raise ValueError(f"{name} is {tuple(part.shape)}; x of {tuple(self.x.shape)} takes {shape}")
        self._check_groups()
        if self.initial is not None and self.initial.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(f"initial is {self.initial.dtype}; a state drifts in it: keep it in float32")
        devices = {part.device for part in self if part is not None}
        if len(devices) > 1:
            raise TypeError(f"tensors on {', '.join(sorted(map(str, devices)))}; put them on one device")
        if self.A.device.type == "cpu" and bool((self.A > 0).any()):
            raise ValueError(f"A reaches {float(self.A.max())}; it must not be above 0, e.g. -exp(A_log)")

    def _check_groups(self) -> None:
        batch, seq, channels = self.x.shape
        for name in ("B", "C"):
            shape = tuple(getattr(self, name).shape)
            if shape[:2] + shape[3:] != (batch, seq, self.A.shape[1]):
                fix = f"({batch}, {seq}, groups, {self.A.shape[1]})"
                raise ValueError(f"{name} is {shape}; x of {tuple(self.x.shape)} takes {fix}")
            if channels % shape[2]:
                raise ValueError(f"{name} has {shape[2]} groups, which do not divide {channels} channels")
        few, many = sorted((self.B.shape[2], self.C.shape[2]))
        if many % few:
            raise ValueError(f"B and C have {few} and {many} groups; one must be a multiple of the other")
