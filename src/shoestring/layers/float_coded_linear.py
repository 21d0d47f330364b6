"""A linear layer whose weight stays in codes of a narrow float with a scale for each block."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.kernels.packed_linear import MOST_ROWS, PackedWeights, packed_linear
from shoestring.notices import notice_fallback
from shoestring.numbers.block_float import BlockFloat
from shoestring.numbers.packing import unpack_bits

CHUNK_ELEMENTS = 1 << 22
"""Weights that are decoded at once for many rows of x."""
_LEAST_GROUP = 32
_TYPES = {"e2m1": "f4e2m1", "e2m3": "f6e2m3", "e3m2": "f6e3m2", "e4m3fn": "e4m3fn", "e5m2": "e5m2"}
"""What the tile machine calls the elements."""


class FloatCodedLinear(nn.Module):
    """y = x Wᵀ + b with W in a `BlockFloat` format. Shapes: x (…, in_features) -> y (…, out_features).

    A few rows of x are multiplied by the codes as they are, which are packed a second time in the order of
    the kernel at the first call; for more rows the matrix is decoded in pieces.
    """

    codes: Tensor
    scales: Tensor

    def __init__(
        self,
        form: BlockFloat,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.form, self.in_features, self.out_features = form, in_features, out_features
        for name, (shape, kind) in form.tensors(out_features, in_features).items():
            self.register_buffer(name, torch.zeros(shape, dtype=kind, device=device))
        zeros = torch.zeros(out_features, dtype=dtype, device=device)
        self.bias = nn.Parameter(zeros, requires_grad=False) if bias else None
        self._packed: tuple[tuple[int, int], PackedWeights, Tensor] | None = None

    @classmethod
    def of(
        cls,
        form: BlockFloat,
        weight: Float[Tensor, "out_features in_features"],
        bias: Float[Tensor, " out_features"] | None = None,
        name: str = "weight",
    ) -> "FloatCodedLinear":
        """Round a matrix into the format. Raises: ValueError as `BlockFloat.store` does."""
        outputs, inputs = weight.shape
        layer = cls(form, inputs, outputs, device="meta")
        for part, tensor in form.store(weight, name).items():
            setattr(layer, part, tensor)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        return layer

    @property
    def stored(self) -> dict[str, Tensor]:
        """The stored tensors by name."""
        return {"codes": self.codes, "scales": self.scales}

    @property
    def weight(self) -> Float[Tensor, "out_features in_features"]:
        """The whole matrix, decoded anew at each access, float32."""
        return self.form.dequantise(self.stored, self.in_features)

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        rows = x.reshape(-1, self.in_features)
        few = len(rows) <= MOST_ROWS and not (torch.is_grad_enabled() and x.requires_grad)
        y = self._by_codes(rows) if few and self._has_kernel() else self._decoded(rows)
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.form}"

    @property
    def _group(self) -> int:
        """Columns that share a scale for the kernel: a block may end within a group of its own size."""
        return math.gcd(self.form.block_cols, self.in_features)

    def _has_kernel(self) -> bool:
        if self.codes.device.type != "cpu":
            reason = f"decoded in torch on {self.codes.device}: the kernel is for processors"
        elif self._group < _LEAST_GROUP or self.form.element not in _TYPES:
            reason = (
                f"decoded in torch: there is no kernel for {self.form.element} with {self.in_features} "
                f"inputs in blocks of {self.form.block_cols}"
            )
        else:
            return True
        notice_fallback("float-coded weights", reason)
        return False

    def _by_codes(self, rows: Tensor) -> Tensor:
        version = self.codes.data_ptr(), 0 if self.codes.is_inference() else self.codes._version
        if self._packed is None or self._packed[0] != version:
            codes = unpack_bits(self.codes, self.form.format.bits, self.in_features)
            weights = PackedWeights.pack(codes, _TYPES[self.form.element], self._group)
            scales = self.form.row_scales(self.stored, self.out_features, self.in_features, self._group)
            self._packed = version, weights, scales.T.contiguous().T
        return packed_linear(rows, self._packed[1], self._packed[2])

    def _decoded(self, rows: Tensor) -> Tensor:
        step = max(1, CHUNK_ELEMENTS // self.in_features // self.form.block_rows) * self.form.block_rows
        parts = []
        for start in range(0, self.out_features, step):
            part = self.form.dequantise(self.stored, self.in_features, slice(start, start + step))
            parts.append(F.linear(rows, part.to(rows.dtype)))
        return torch.cat(parts, -1)
