"""What callers hand to a compiled program, checked before any of it is touched."""

import functools
import math
from collections.abc import Mapping

import numpy as np
import torch

from shoestring.errors import ProgramError
from shoestring.kernels.tile import ir
from shoestring.kernels.tile.expressions import evaluate
from shoestring.kernels.tile.ir import Pointer, Program
from shoestring.kernels.tile.types import DataType

Buffer = np.ndarray | torch.Tensor
ALIGNMENT_BYTES = 16
_ACCEPTED = {
    "f32": ("float32",),
    "i32": ("int32", "uint32"),
    "f16": ("float16", "uint16", "int16"),
    "bf16": ("bfloat16", "uint16", "int16"),
}


class Binder:
    """Checks the arguments of one program; what follows from the program alone is worked out once."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._names = {p.name for p in program.params}
        self._scalars, self._pointers = program.scalars, program.pointers
        self._views = [step for step in program.instructions() if isinstance(step, ir.ViewGlobal)]
        self._written = {i.out.tensor.name for i in program.instructions() if isinstance(i, ir.StoreGlobal)}
        self._needed: dict[tuple[int, ...], list[int]] = {}

    def bind(self, arguments: Mapping[str, "int | Buffer"]) -> tuple[dict[str, int], dict[str, Buffer]]:
        """Scalars and buffers by name, all of them fit for the program.

        Raises: ProgramError for a missing or unknown name, a scalar that breaks its promise, or a buffer of
        the wrong type, too short, not contiguous, not aligned, or not on the processor.
        """
        program = self.program
        if self._names != set(arguments):
            raise ProgramError(f"{program.name} takes {sorted(self._names)}, not {sorted(arguments)}")
        scalars: dict[str, int] = {}
        for scalar in self._scalars:
            value = arguments[scalar.name]
            if not isinstance(value, int) or value % scalar.divisible_by:
                raise ProgramError(
                    f"{program.name}: {scalar.name}={value!r} must be an int divisible by "
                    f"{scalar.divisible_by}"
                )
            scalars[scalar.name] = value
        buffers: dict[str, Buffer] = {}
        for pointer in self._pointers:
            buffer = arguments[pointer.name]
            if isinstance(buffer, int):
                raise ProgramError(f"{program.name}: {pointer.name} must be an array, not {buffer!r}")
            _check_buffer(program, pointer, buffer)
            buffers[pointer.name] = buffer
        self._check_views(scalars, buffers)
        return scalars, buffers

    def _check_views(self, scalars: Mapping[str, int], buffers: Mapping[str, Buffer]) -> None:
        key = tuple(scalars.values())
        if key not in self._needed:
            self._needed[key] = [bytes_of_view(step, scalars) for step in self._views]
        for step, needed in zip(self._views, self._needed[key], strict=True):
            buffer = buffers[step.pointer.name]
            if needed > nbytes(buffer):
                raise ProgramError(
                    f"{self.program.name}: {step}: a tensor of {needed} bytes in a buffer of {nbytes(buffer)}"
                )
            read_only = isinstance(buffer, np.ndarray) and not buffer.flags.writeable
            if read_only and step.out.name in self._written:
                raise ProgramError(f"{self.program.name}: {step.pointer.name} is written to but read-only")


def _check_buffer(program: Program, pointer: Pointer, buffer: Buffer) -> None:
    where = f"{program.name}: {pointer.name}"
    is_torch = isinstance(buffer, torch.Tensor)
    kind = _name_of(buffer.dtype)
    accepted = _ACCEPTED.get(pointer.dtype.name, ("uint8", "int8"))
    if kind not in accepted:
        raise ProgramError(f"{where} holds {pointer.dtype}: give {' or '.join(accepted)}, not {kind}")
    if isinstance(buffer, torch.Tensor):
        if buffer.device.type != "cpu" or buffer.requires_grad:
            raise ProgramError(f"{where} must be on the cpu and need no gradient; use .detach().cpu()")
        contiguous = buffer.is_contiguous()
    else:
        contiguous = buffer.flags.c_contiguous
    if not contiguous:
        raise ProgramError(f"{where} must be contiguous; use .{'contiguous' if is_torch else 'copy'}()")
    if address(buffer) % ALIGNMENT_BYTES and nbytes(buffer):
        copy = "clone" if is_torch else "copy"
        raise ProgramError(f"{where} must start at a multiple of {ALIGNMENT_BYTES} bytes; use .{copy}()")


@functools.cache
def _name_of(dtype: torch.dtype | np.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def bytes_of_view(step: ir.ViewGlobal, scalars: Mapping[str, int]) -> int:
    """Bytes from the start of a buffer to the end of a view of it.

    Raises: ProgramError where a scalar computed inside the program has a say: the view could not be checked.
    """
    try:
        shape = [evaluate(n, scalars) for n in step.out.shape]
        strides = [evaluate(s, scalars) for s in step.out.strides]
    except KeyError as error:
        raise ProgramError(
            f"{step}: {error.args[0]}; shape and strides of a view follow from scalar parameters"
        ) from None
    if min(strides, default=0) < 0:
        raise ProgramError(f"{step}: strides {strides} reach before the start of the buffer")
    if any(n <= 0 for n in shape):
        return 0
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    return ((last + 1) * step.out.dtype.bits + 7) // 8


def workspace(tensor: ir.Tensor, scalars: Mapping[str, int]) -> np.ndarray:
    """Zeros for a buffer that the program allocates."""
    try:
        size = math.prod(max(evaluate(n, scalars), 0) for n in tensor.shape)
    except KeyError as error:
        raise ProgramError(f"{tensor}: {error.args[0]}; its shape follows from scalar parameters") from None
    return np.zeros(max((size * tensor.dtype.bits + 7) // 8, 1), np.uint8)


def address(buffer: Buffer) -> int:
    return buffer.data_ptr() if isinstance(buffer, torch.Tensor) else int(buffer.ctypes.data)


def nbytes(buffer: Buffer) -> int:
    return int(buffer.nbytes)


def as_numpy(buffer: Buffer, dtype: DataType) -> np.ndarray:
    """The same memory as an array of codes, as the interpreter takes it."""
    if isinstance(buffer, np.ndarray):
        return buffer
    return (buffer.view(torch.int16) if dtype.bits == 16 else buffer).numpy()
