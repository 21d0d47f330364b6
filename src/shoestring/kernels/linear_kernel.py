"""`linear_kernel.h` in Python: the product of a linear layer as code that a team of threads can call."""

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.kernels.costs import count_cost
from shoestring.kernels.large_pages import on_large_pages
from shoestring.kernels.native import load_library

ALIGNMENT_BYTES = 64
"""Of all that a kernel is given."""


class LinearKernelFields(ctypes.Structure):
    """The struct `linear_kernel` of `linear_kernel.h`, field by field."""

    _fields_ = (
        ("run", ctypes.c_void_p),
        ("scratch_bytes", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("weights", ctypes.c_void_p * 6),
        ("sizes", ctypes.c_int64 * 6),
        ("many", ctypes.c_void_p),
    )


class ManyRows(ctypes.Structure):
    """The struct `many_rows` of `linear_kernel.h`, which libraries fill in themselves."""

    _fields_ = tuple(
        (name, ctypes.c_void_p) for name in ("prepare", "multiply", "prepared_bytes", "scratch_bytes")
    )


class LinearKernel:
    """One linear layer, y = x Wᵀ (+ b), as a `linear_kernel` of C; it keeps alive what the struct points to.

    run, scratch_bytes: functions of a library loaded with ctypes. weights, sizes: at most six of each, as the
    library's `run` explains them; tensors must be contiguous. bias: (outputs), copied to float32. many: the
    library's `many_rows` for this kernel, where it has one.

    Raises: ValueError for a tensor that is not contiguous or too many of them.
    """

    def __init__(
        self,
        run: Any,
        scratch_bytes: Any,
        inputs: int,
        outputs: int,
        weights: Sequence[Tensor | None],
        sizes: Sequence[int] = (),
        bias: Tensor | None = None,
        many: ManyRows | None = None,
    ) -> None:
        if len(weights) > 6 or len(sizes) > 6:
            raise ValueError(f"{len(weights)} tensors and {len(sizes)} sizes; a kernel takes six of each.")
        if any(part is not None and not part.is_contiguous() for part in weights):
            raise ValueError("the tensors of a kernel must be contiguous; pass tensor.contiguous().")
        self.inputs, self.outputs = inputs, outputs
        bias = None if bias is None else bias.detach().float().contiguous().clone()
        self._alive = (run, scratch_bytes, tuple(weights), bias)
        self._sizes, self._many = tuple(sizes), many
        fields = LinearKernelFields(
            ctypes.cast(run, ctypes.c_void_p).value,
            ctypes.cast(scratch_bytes, ctypes.c_void_p).value,
            inputs,
            outputs,
            None if bias is None else bias.data_ptr(),
        )
        for index, part in enumerate(weights):
            fields.weights[index] = None if part is None else part.data_ptr()
        for index, size in enumerate(sizes):
            fields.sizes[index] = size
        fields.many = None if many is None else ctypes.addressof(many)
        self.fields = fields

    @property
    def address(self) -> int:
        """Where the struct is; good as long as this object lives."""
        return ctypes.addressof(self.fields)

    @property
    def tensors(self) -> list[Tensor]:
        """What a call reads."""
        return [part for part in self._alive[2] if part is not None]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that a call reads."""
        return sum(part.nbytes for part in self.tensors)

    def copy(self) -> "LinearKernel":
        """The same layer with weights of its own, elsewhere in memory."""
        run, scratch_bytes, weights, bias = self._alive
        moved = [None if part is None else on_large_pages(part.clone()) for part in weights]
        shape = self.inputs, self.outputs
        return LinearKernel(run, scratch_bytes, *shape, moved, self._sizes, bias, self._many)

    def __call__(self, x: Float[Tensor, "tokens inputs"]) -> Float[Tensor, "tokens outputs"]:
        """y for float32 rows of x, on `torch.get_num_threads()` threads."""
        if x.shape[1] != self.inputs or x.dtype != torch.float32:
            raise ValueError(
                f"x is {tuple(x.shape)} {x.dtype}; this layer takes (tokens, {self.inputs}) float32."
            )
        library, threads, tokens = _library(), torch.get_num_threads(), x.shape[0]
        x, y = aligned_copy(x), aligned_room(4 * tokens * self.outputs)
        room = aligned_room(max(1, library.linear_room_bytes(self.address, tokens, threads)))
        moved = self.nbytes + x.nbytes + 4 * tokens * self.outputs
        with count_cost("linear_kernel", flops=2 * tokens * self.inputs * self.outputs, bytes=moved):
            library.apply_linear(self.address, x.data_ptr(), y.data_ptr(), tokens, room.data_ptr(), threads)
        return y.view(torch.float32)[: tokens * self.outputs].view(tokens, self.outputs)


def zero_kernel(inputs: int, outputs: int) -> LinearKernel:
    """A layer that gives zeros and reads nothing. Raises: NoCompiler."""
    library = _library()
    return LinearKernel(library.zero_linear, library.zero_linear_scratch, inputs, outputs, ())


def run_in_turn(kernels: Sequence[LinearKernel], x: Float[Tensor, "tokens inputs"]) -> Callable[[], None]:
    """A call that runs layers of one shape on x one after the other, as a decode step does; the outputs go.

    For clocks: nothing of Python stands between two layers. Raises: ValueError for layers of several shapes,
    or none.
    """
    shapes = {(kernel.inputs, kernel.outputs) for kernel in kernels}
    if shapes != {(x.shape[1], kernels[0].outputs if kernels else 0)}:
        raise ValueError(f"layers of {sorted(shapes)} on {x.shape[1]} inputs; give layers of one shape.")
    library, threads, tokens = _library(), torch.get_num_threads(), x.shape[0]
    inputs, y = aligned_copy(x.float()), aligned_room(4 * tokens * kernels[0].outputs)
    stride = max(library.linear_scratch_bytes(kernel.address, tokens) for kernel in kernels)
    scratch = aligned_room(stride * threads + 1)
    addresses = (ctypes.c_void_p * len(kernels))(*(kernel.address for kernel in kernels))
    kept = tuple(kernels)

    def call() -> None:
        library.apply_linears(
            addresses, len(kept), inputs.data_ptr(), y.data_ptr(), tokens, scratch.data_ptr(), stride, threads
        )

    return call


def aligned_room(n_bytes: int) -> Tensor:
    """Uninitialised bytes that begin on a cache line."""
    room = torch.empty(n_bytes + ALIGNMENT_BYTES, dtype=torch.uint8)
    skipped = -room.data_ptr() % ALIGNMENT_BYTES
    return room[skipped : skipped + n_bytes]


def aligned_copy(x: Tensor) -> Tensor:
    """`x`, contiguous and beginning on a cache line: itself where it does."""
    x = x.contiguous()
    if x.data_ptr() % ALIGNMENT_BYTES == 0:
        return x
    copy = aligned_room(x.nbytes).view(x.dtype).view(x.shape)
    return copy.copy_(x)


@functools.cache
def _library() -> ctypes.CDLL:
    library = load_library(Path(__file__).with_suffix(".c"))
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.apply_linear.argtypes = [pointer, pointer, pointer, size, pointer, number]
    library.apply_linear.restype = None
    library.apply_linears.argtypes = [pointer, size, pointer, pointer, size, pointer, size, number]
    library.apply_linears.restype = None
    library.linear_scratch_bytes.argtypes = [pointer, size]
    library.linear_scratch_bytes.restype = size
    library.linear_room_bytes.argtypes = [pointer, size, number]
    library.linear_room_bytes.restype = size
    return library
