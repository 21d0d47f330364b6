"""`linear_kernel.h` seen from Python: how C code calls the product of a linear layer."""

import ctypes
from dataclasses import dataclass, field
from typing import Any

_SLOTS = 6


class LinearKernelStruct(ctypes.Structure):
    """struct linear_kernel. `run` and `scratch_bytes` are set in C, by what describes a kernel."""

    _fields_ = (
        ("run", ctypes.c_void_p),
        ("scratch_bytes", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("weights", ctypes.c_void_p * _SLOTS),
        ("sizes", ctypes.c_int64 * _SLOTS),
    )


@dataclass(frozen=True)
class LinearKernel:
    """A described product, with what it points at kept alive. keep: tensors and libraries that C reads."""

    struct: LinearKernelStruct
    keep: tuple[Any, ...] = field(repr=False)

    @property
    def address(self) -> int:
        """Where the struct lies, as C takes it."""
        return ctypes.addressof(self.struct)
