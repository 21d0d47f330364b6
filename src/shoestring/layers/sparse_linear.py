"""A linear layer whose weight is stored as a bitmap and the values that are not zero."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import Cost, cost_is_wanted, count_cost
from shoestring.kernels.linear_kernel import LinearKernel
from shoestring.kernels.sparse.linear import expand_bitmap, sparse_linear
from shoestring.kernels.sparse.matmul import cost_of_product
from shoestring.notices import notice_fallback
from shoestring.numbers.bitmap_matrix import WORD, BitmapMatrix, stream_padding
from shoestring.numbers.sparse_values import ValueKind

MOST_TOKENS = 32
"""Tokens up to which the sparse kernel is used; for more, the matrix is expanded and torch multiplies."""


class SparseLinear(nn.Module):
    """y = x Wᵀ + b with W a `BitmapMatrix`. Shapes: x (…, in_features) -> y (…, out_features).

    The stored tensors are integer buffers, so that the state_dict is the saved form and `.to(dtype)` leaves
    them alone; the sums are float32, the output has the type of x. x in bfloat16 meets the weights in pairs
    of products where the processor has them. A gradient flows to x, none to the weight: tune the masked dense
    model before it is stored (`shoestring.training.masked_tuning`).

    kind: of the stored values. nonzeros: how many are stored.
    """

    masks: Tensor
    values: Tensor
    row_starts: Tensor
    scale_bits: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kind: ValueKind,
        nonzeros: int,
        *,
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.kind, self.nonzeros = (
            in_features,
            out_features,
            kind,
            nonzeros,
        )
        for name, (shape, stored) in stored_shapes(in_features, out_features, kind, nonzeros).items():
            self.register_buffer(name, torch.zeros(shape, dtype=stored, device=device))
        zeros = torch.zeros(out_features, dtype=dtype, device=device)
        self.bias = nn.Parameter(zeros, requires_grad=False) if bias else None
        self._kernels: dict[tuple[object, ...], LinearKernel] = {}

    @classmethod
    def of(cls, matrix: BitmapMatrix, bias: Tensor | None = None) -> "SparseLinear":
        """A layer with this weight, not copied, and a copy of the bias."""
        shape = matrix.cols, matrix.rows, matrix.kind, matrix.nonzeros
        layer = cls(*shape, bias=bias is not None, device="meta")
        layer.masks, layer.values, layer.row_starts = matrix.masks, matrix.values, matrix.row_starts
        if matrix.scales is not None:
            layer.scale_bits = matrix.scales.view(torch.int32)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        return layer

    @property
    def matrix(self) -> BitmapMatrix:
        """The stored weight."""
        scales = self.scale_bits.view(torch.float32) if self.kind is ValueKind.INT8 else None
        shape = self.out_features, self.in_features, self.kind
        return BitmapMatrix(*shape, self.masks, self.values, self.row_starts, scales)

    @property
    def weight(self) -> Float[Tensor, "out_features in_features"]:
        """The whole matrix in float32, expanded anew at each access."""
        if self.masks.device.type == "cpu":
            try:
                return expand_bitmap(self.kernel())
            except NoCompiler:
                return self.matrix.to_dense()
        on_host = SparseLinear.of(_moved(self.matrix, "cpu"))
        return on_host.weight.to(self.masks.device)

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return _SparseProduct.apply(x.to(dtype), self)

    def _product(self, rows: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens out_features"]:
        if len(rows) <= MOST_TOKENS and rows.device.type == "cpu":
            try:
                kernel = self.kernel(round_inputs=rows.dtype == torch.bfloat16)
            except NoCompiler as error:
                notice_fallback("SparseLinear", f"expands its matrix at every call ({error})")
            else:
                cost = cost_of_product(rows, self.matrix) if cost_is_wanted() else Cost()
                with count_cost("sparse_linear", flops=cost.flops, bytes=cost.bytes):
                    return kernel(rows.float()).to(rows.dtype)
        bias = None if self.bias is None else self.bias.to(rows.dtype)
        return F.linear(rows, self.weight.to(rows.dtype), bias)

    def kernel(self, *, round_inputs: bool = False) -> LinearKernel:
        """The product as a kernel for a team of threads; kept until a stored tensor is moved or replaced.

        Raises: ValueError for stored tensors that contradict each other; NoCompiler.
        """
        bias = None if self.bias is None else (self.bias.data_ptr(), self.bias._version)
        key = (round_inputs, bias, *(part.data_ptr() for part in self.buffers()))
        if key not in self._kernels:
            matrix = self.matrix
            matrix.check()
            stale = [known for known in self._kernels if known[1:] != key[1:]]
            for known in stale:
                del self._kernels[known]
            own = None if self.bias is None else self.bias.detach().float()
            self._kernels[key] = sparse_linear(matrix, own, round_inputs=round_inputs)
        return self._kernels[key]

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensors, bias apart."""
        return self.matrix.nbytes

    def extra_repr(self) -> str:
        sparse = 1 - self.nonzeros / (self.in_features * self.out_features)
        return f"{self.in_features}, {self.out_features}, {self.kind.value}, {sparse:.2f} sparse"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kernels": {}}  # addresses mean nothing in a copy


class _SparseProduct(torch.autograd.Function):
    """The product; the gradient of x goes through the matrix, expanded again. The weight itself has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: SparseLinear) -> Tensor:
        ctx.layer = layer
        return layer._product(x.reshape(-1, layer.in_features)).reshape(*x.shape[:-1], layer.out_features)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad @ ctx.layer.weight.to(grad.dtype), None


def stored_shapes(
    in_features: int, out_features: int, kind: ValueKind, nonzeros: int
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of each stored tensor, by name; scales are kept as the bits of float32."""
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "masks": ((out_features, -(-in_features // WORD)), torch.int32),
        "values": ((nonzeros + stream_padding(kind),), kind.bits_dtype),
        "row_starts": ((out_features + 1,), torch.int32),
    }
    if kind is ValueKind.INT8:
        shapes["scale_bits"] = ((out_features,), torch.int32)
    return shapes


def _moved(matrix: BitmapMatrix, device: str) -> BitmapMatrix:
    scales = None if matrix.scales is None else matrix.scales.to(device)
    tensors = matrix.masks.to(device), matrix.values.to(device), matrix.row_starts.to(device)
    return BitmapMatrix(matrix.rows, matrix.cols, matrix.kind, *tensors, scales)
