"""A product with packed weights as one call into C: what a call needs besides its operands is kept ready.

A product of one row takes about a millisecond of memory traffic, which leaves Python's own code nowhere near
a cache: ten small steps in Python would cost a quarter of it.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.errors import ProgramError
from shoestring.kernels.native import load_library
from shoestring.kernels.tile.c.compiled import CompiledProgram

_KINDS = {torch.float32: 0, torch.bfloat16: 1}


class _Product(ctypes.Structure):
    """As in packed_product.c."""

    _fields_ = [
        ("kernel", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("outputs", "groups", "size", "limbs", "block", "has_offsets")),
    ]


class PackedProduct:
    """A compiled kernel for weights of one shape. `block`: rows of x that it reads side by side; `limbs`:
    bytes of the whole numbers that x becomes, 0 for float32."""

    def __init__(
        self,
        kernel: CompiledProgram,
        outputs: int,
        groups: int,
        group_size: int,
        *,
        block: int,
        limbs: int,
        offsets: bool,
    ) -> None:
        """Raises: ProgramError for a kernel with other parameters. NoCompiler."""
        expected = ["m", "n", "k", "x", *["factors"] * bool(limbs), "packed", "scales"]
        expected += ["offsets", "sums"] * offsets + ["y"]
        names = [parameter.name for parameter in kernel.program.params]
        if names != expected:
            raise ProgramError(f"{kernel.program.name} takes {names}; a product here gives {expected}")
        self.kernel, self.outputs, self.groups = kernel, outputs, groups
        function: Any = kernel.function
        address = ctypes.cast(function, ctypes.c_void_p).value
        self._fixed = _Product(address, outputs, groups, group_size, limbs, block, offsets)
        self._at, self._call = ctypes.addressof(self._fixed), _function()

    def __call__(
        self,
        x: Float[Tensor, "*batch inputs"],
        packed: Tensor,
        scales: Float[Tensor, "outputs groups"],
        offsets: Float[Tensor, "_outputs _groups"] | None,
    ) -> Float[Tensor, "*batch outputs"]:
        """y in the type of x.

        Raises: MemoryError, or ProgramError with what went wrong inside.
        """
        given = x if x.dtype in _KINDS and x.is_contiguous() else _as_given(x)
        *batch, inputs = given.shape
        y = given.new_empty(*batch, self.outputs)
        by_group = self._by_group(scales)
        shifts = None if offsets is None else self._by_group(offsets)
        kind = _KINDS[given.dtype]
        code = self._call(
            self._at, given.data_ptr(), kind, given.numel() // inputs, packed.data_ptr(), by_group.data_ptr(),
            None if shifts is None else shifts.data_ptr(), y.data_ptr(), kind, torch.get_num_threads(),
        )  # fmt: skip
        if code < 0:
            raise MemoryError(f"no memory for the {given.numel()} inputs of a product")
        if code:
            raise ProgramError(self.kernel.rendered.failures[code - 1])
        return y if given.dtype is x.dtype else y.to(x.dtype)

    def _by_group(self, tensor: Tensor) -> Tensor:
        """float32, group after group: the tensor itself where it is the transpose of such a one."""
        if tensor.dtype is torch.float32 and tensor.stride() == (1, self.outputs):
            return tensor
        return tensor.detach().float().T.contiguous().T


def _as_given(x: Tensor) -> Tensor:
    return (x if x.dtype in _KINDS else x.float()).detach().contiguous()


@functools.cache
def _function() -> Any:
    function = load_library(Path(__file__).parent / "packed_product.c").packed_product
    pointer, whole, kind = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    function.argtypes = [pointer, pointer, kind, whole, pointer, pointer, pointer, pointer, kind, kind]
    return function
