"""Linear maps and embeddings whose weight stays packed: it is dequantised in pieces while it is used.

The stored tensors are buffers, so that the state_dict is the saved form. They exist once: as long as a
file, or a kernel in an order of its own, has them, they are read from there, and come back when one is
asked for. A tied embedding and head use the same `PackedWeight`; one of them owns it, the others borrow it,
so that it is stored and moved once.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.kernels.dequantise import dequantise_rows
from shoestring.kernels.grouped_linear import GroupedWeights
from shoestring.numbers.grouped_affine import AffineGrid, GroupedAffine, ZeroPoint
from shoestring.numbers.packing import unpack_bits

CHUNK_ELEMENTS = 1 << 22
"""Weights that are dequantised at once; what a forward needs beside its input and output."""


@runtime_checkable
class Source(Protocol):
    """What gives back the stored tensors of a matrix, bit for bit: `GroupedWeights`, or a file."""

    def unpack(self, form: GroupedAffine, rows: slice | Tensor = ...) -> dict[str, Tensor]:
        """The stored tensors of some rows."""


class PackedWeight(nn.Module):
    """A (rows, cols) matrix in a `GroupedAffine` format; a call multiplies: x (…, cols) -> x Wᵀ (…, rows).

    dtype: the floating type in which the matrix takes part in computations; the stored tensors keep their own
    types under `.to(dtype)`.
    """

    codes: Tensor
    _source: "Source | None" = None

    def __init__(
        self,
        form: GroupedAffine,
        rows: int,
        cols: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.form, self.rows, self.cols, self.dtype = form, rows, cols, dtype
        for name, (shape, kind) in form.tensors(rows, cols).items():
            self.register_buffer(name, torch.zeros(shape, dtype=kind, device=device))

    @classmethod
    def of(
        cls, form: GroupedAffine, codes: Tensor, grid: AffineGrid, dtype: torch.dtype = torch.float32
    ) -> "PackedWeight":
        """Pack codes (rows, cols) and their grid."""
        packed = cls(form, *codes.shape, dtype=dtype, device="meta")
        for name, tensor in form.store(codes, grid).items():
            setattr(packed, name, tensor)
        return packed

    @classmethod
    def read_later(
        cls, form: GroupedAffine, shape: tuple[int, int], source: "Source", dtype: torch.dtype = torch.float32
    ) -> "PackedWeight":
        """A matrix whose stored tensors are read from `source` when they are first needed."""
        packed = cls(form, *shape, dtype=dtype, device="meta")
        packed._leave_to(source)
        return packed

    @property
    def kernel_form(self) -> GroupedWeights | None:
        """The matrix as a kernel has packed it, where that is how it is held."""
        return self._source if isinstance(self._source, GroupedWeights) else None

    def pack_for_kernel(self) -> GroupedWeights:
        """Hold the matrix in the order of the kernel from now on, instead of as it is stored (CPU only).

        Raises: NoCompiler.
        """
        if (known := self.kernel_form) is not None:
            return known
        stored = self._source.unpack(self.form) if self._source else self.stored()
        held = GroupedWeights.pack(self.form, stored, self.cols)
        self._leave_to(held)
        for index, part in enumerate(held.parts):
            # Seen by whoever counts a model's memory, and saved by nobody.
            if part is not None:
                self.register_buffer(f"kernel_part_{index}", part, persistent=False)
        return held

    def _leave_to(self, source: "Source") -> None:
        for name in self.form.tensors(self.rows, self.cols):
            self._buffers.pop(name, None)
        self._source = source

    def _take_back(self) -> None:
        """Make the stored tensors buffers again."""
        if (source := self._source) is None:
            return
        stored = source.unpack(self.form)
        self._source = None
        for name in [name for name in self._buffers if name.startswith("kernel_part_")]:
            del self._buffers[name]
        for name, tensor in stored.items():
            self.register_buffer(name, tensor)

    def __getattr__(self, name: str) -> Any:
        own = not name.startswith("_") and name != "form" and self._source is not None
        if own and name in self.form.tensors(self.rows, self.cols):
            self._take_back()
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._source is not None and name in self.form.tensors(self.rows, self.cols):
            self._take_back()
        super().__setattr__(name, value)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._source is not None:
            stored = self._source.unpack(self.form)
            destination.update({prefix + name: tensor for name, tensor in stored.items()})

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._take_back()
        super()._load_from_state_dict(*args, **kwargs)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self._source is not None else self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensors."""
        return self.form.nbytes(self.rows, self.cols)

    def stored(self, rows: slice | Tensor = slice(None)) -> dict[str, Tensor]:
        """The stored tensors of some rows."""
        if (held := self.kernel_form) is not None:
            return held.unpack(self.form, rows)
        return {name: getattr(self, name)[rows] for name in self.form.tensors(self.rows, self.cols)}

    def dequantise(
        self, rows: slice | Tensor = slice(None), dtype: torch.dtype | None = None
    ) -> Float[Tensor, "chosen cols"]:
        """Some rows of the matrix as floats of `dtype` (default: the weight's own)."""
        dtype = self.dtype if dtype is None else dtype
        if "trained_scale" in self._parameters:
            codes = unpack_bits(self.codes[rows], self.form.bits, self.cols)
            return self.form.decode(codes, self._trained_grid(rows)).to(dtype)
        if isinstance(rows, Tensor) and (held := self.kernel_form) is not None:
            return held.rows(rows).to(dtype)
        return dequantise_rows(self.form, self.stored(rows), self.cols, dtype)

    def forward(self, x: Float[Tensor, "*batch cols"]) -> Float[Tensor, "*batch rows"]:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        x = x.to(dtype)
        if "trained_scale" in self._parameters:
            return F.linear(x, self.dequantise(dtype=dtype))
        return _PackedProduct.apply(x, self)

    def chunks(self) -> list[slice]:
        """The rows in pieces of at most CHUNK_ELEMENTS weights (one row at least)."""
        step = max(1, CHUNK_ELEMENTS // self.cols)
        return [slice(start, min(start + step, self.rows)) for start in range(0, self.rows, step)]

    def unpack_for_training(self) -> "PackedWeight":
        """Make the scales (and REAL offsets) float32 parameters; the codes stay. Undone by `repack`."""
        grid = self.form.grid(self.stored(), self.cols)
        self.trained_scale = nn.Parameter(grid.scale)
        if self.form.zero_point is ZeroPoint.REAL:
            self.trained_offset = nn.Parameter(grid.offset)
        return self

    def repack(self) -> "PackedWeight":
        """Round the trained scales and offsets to what the format stores and drop the parameters."""
        with torch.no_grad():
            trained = self._trained_grid(slice(None))
            shift = trained.offset if self.form.zero_point is ZeroPoint.REAL else trained.zero
            grid = self.form.represent(trained.scale, shift)
            for name, tensor in self.form.store(
                unpack_bits(self.codes, self.form.bits, self.cols), grid
            ).items():
                setattr(self, name, tensor)
        del self.trained_scale
        if self.form.zero_point is ZeroPoint.REAL:
            del self.trained_offset
        return self

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.cols}, {self.form}"

    def _trained_grid(self, rows: slice | Tensor) -> AffineGrid:
        fixed = self.form.grid(self.stored(rows), self.cols)
        offset = self._parameters.get("trained_offset")
        return AffineGrid(
            self.trained_scale[rows], fixed.zero, fixed.offset if offset is None else offset[rows]
        )

    def _apply(self, fn: Any, recurse: bool = True) -> "PackedWeight":
        # `.to(dtype)` and `.half()` would round the float16 scales: move them as bit patterns instead.
        self._take_back()
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        halves = {name: b for name, b in self._buffers.items() if b is not None and b.dtype == torch.float16}
        for name, tensor in halves.items():
            self._buffers[name] = tensor.view(torch.int16)
        super()._apply(fn, recurse)
        for name in halves:
            bits = self._buffers[name]
            assert bits is not None
            self._buffers[name] = bits.view(torch.float16)
        return self


class _PackedProduct(torch.autograd.Function):
    """x Wᵀ chunk by chunk; backward dequantises again instead of keeping the matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: PackedWeight) -> Tensor:
        ctx.packed = packed
        chunks = packed.chunks()
        if len(chunks) == 1:
            return F.linear(x, packed.dequantise(dtype=x.dtype))
        out = x.new_empty(*x.shape[:-1], packed.rows)
        for rows in chunks:
            out[..., rows] = F.linear(x, packed.dequantise(rows, x.dtype))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        packed = ctx.packed
        parts = (grad[..., rows] @ packed.dequantise(rows, grad.dtype) for rows in packed.chunks())
        return sum(parts, start=grad.new_zeros(())), None


class _PackedLayer(nn.Module):
    """What layers with a packed weight have in common."""

    def __init__(self, packed: PackedWeight) -> None:
        super().__init__()
        self.packed = packed

    @property
    def borrows(self) -> bool:
        """Whether the packed weight belongs to another layer."""
        return "packed" not in self._modules

    def borrow(self) -> None:
        """Leave the packed weight to the layer that this one is tied to; it must stay in the same model."""
        self.__dict__["packed"] = self._modules.pop("packed")

    @property
    def weight(self) -> Float[Tensor, "rows cols"]:
        """The whole matrix, dequantised anew at each access."""
        return self.packed.dequantise()


class PackedLinear(_PackedLayer):
    """y = x Wᵀ + b with a packed W. Shapes: x (…, in_features) -> y (…, out_features)."""

    def __init__(self, packed: PackedWeight, bias: Tensor | None = None) -> None:
        super().__init__(packed)
        self.in_features, self.out_features = packed.cols, packed.rows
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        y = self.packed(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class PackedEmbedding(_PackedLayer):
    """Rows of a packed table, times `scale`. Shapes: ids (…) -> (…, embedding_dim), in the weight's dtype."""

    def __init__(self, packed: PackedWeight, padding_idx: int | None = None, scale: float = 1.0) -> None:
        super().__init__(packed)
        self.scale = scale
        self.num_embeddings, self.embedding_dim = packed.rows, packed.cols
        self.padding_idx = padding_idx

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch embedding_dim"]:
        rows = self.packed.dequantise(ids.reshape(-1)).reshape(*ids.shape, self.embedding_dim)
        # Rounded to the type of the rows first, as in `ScaledEmbedding`.
        return rows if self.scale == 1.0 else rows * rows.new_tensor(self.scale)
