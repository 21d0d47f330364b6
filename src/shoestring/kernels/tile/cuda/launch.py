"""Runs a compiled CUDA kernel on tensors of torch, through NVIDIA's driver."""

import ctypes
import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.errors import ProgramError
from shoestring.kernels.tile import ir
from shoestring.kernels.tile.c.arguments import ALIGNMENT_BYTES, bytes_of_view
from shoestring.kernels.tile.cuda.build import compile_cuda
from shoestring.kernels.tile.cuda.renderer import CudaKernel
from shoestring.kernels.tile.expressions import Var, evaluate

_MAX_DYNAMIC_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


@dataclass(frozen=True)
class LoadedKernel:
    """Call it with the program's parameters by name; tensors are changed in place, on the current stream.

    `function`: a CUfunction of the device that was current when it was loaded.
    """

    kernel: CudaKernel
    function: ctypes.c_void_p

    def __call__(self, **arguments: int | Tensor) -> None:
        """Start all blocks; torch's stream orders them.

        Raises: ProgramError for arguments that do not fit, or what the driver says.
        """
        scalars = check_arguments(self.kernel, arguments)
        spaces = [_workspace(tensor, scalars) for tensor in self.kernel.workspaces]
        values: list[ctypes.c_int | ctypes.c_void_p] = []
        for parameter in self.kernel.program.params:
            given = arguments[parameter.name]
            values.append(
                ctypes.c_void_p(given.data_ptr()) if isinstance(given, Tensor) else ctypes.c_int(given)
            )
        values += [ctypes.c_void_p(space.data_ptr()) for space in spaces]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        blocks = math.prod(max(evaluate(extent, scalars), 0) for extent in self.kernel.grid)
        if not blocks:
            return
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        shape = (blocks, 1, 1, self.kernel.threads, 1, 1, self.kernel.shared_bytes)
        _do("cuLaunchKernel", self.function, *map(ctypes.c_uint, shape), stream, pointers, None)


def load_kernel(kernel: CudaKernel) -> LoadedKernel:
    """Compile a kernel for the current device and load it.

    Raises: NoCompiler without nvcc; ProgramError for what the driver says.
    """
    torch.cuda.init()
    torch.zeros(1, device="cuda")  # makes the context of the device current
    major, minor = torch.cuda.get_device_capability()
    image = compile_cuda(kernel.text, f"sm_{major}{minor}").read_bytes()
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _do("cuModuleLoadData", ctypes.byref(module), image)
    _do("cuModuleGetFunction", ctypes.byref(function), module, kernel.program.name.encode())
    _do(
        "cuFuncSetAttribute",
        function,
        ctypes.c_int(_MAX_DYNAMIC_SHARED_BYTES),
        ctypes.c_int(kernel.shared_bytes),
    )
    return LoadedKernel(kernel, function)


def check_arguments(kernel: CudaKernel, arguments: dict[str, int | Tensor]) -> dict[str, int]:
    """The scalars by name, all arguments being fit for the program.

    Raises: ProgramError for a name that is missing or unknown, a scalar that breaks its promise or is no
    32-bit integer, or a tensor elsewhere than on the GPU, not contiguous, not aligned, or too short.
    """
    program = kernel.program
    if {p.name for p in program.params} != set(arguments):
        raise ProgramError(
            f"{program.name} takes {[p.name for p in program.params]}, not {sorted(arguments)}"
        )
    scalars: dict[str, int] = {}
    for parameter in program.params:
        given, where = arguments[parameter.name], f"{program.name}: {parameter.name}"
        if isinstance(parameter, Var):
            if not isinstance(given, int) or given % parameter.divisible_by or not -(2**31) <= given < 2**31:
                raise ProgramError(
                    f"{where}={given!r} must be a 32-bit int divisible by {parameter.divisible_by}"
                )
            scalars[parameter.name] = given
        elif not isinstance(given, Tensor) or given.device.type != "cuda" or not given.is_contiguous():
            raise ProgramError(f"{where} must be a contiguous tensor on the GPU; use .contiguous().cuda()")
        elif given.data_ptr() % ALIGNMENT_BYTES:
            raise ProgramError(f"{where} must start at a multiple of {ALIGNMENT_BYTES} bytes; use .clone()")
        elif parameter.dtype.bits >= 16 and given.element_size() * 8 != parameter.dtype.bits:
            raise ProgramError(f"{where} holds {parameter.dtype}, not {given.dtype}")
    for step in program.instructions():
        if isinstance(step, ir.ViewGlobal):
            given = arguments[step.pointer.name]
            assert isinstance(given, Tensor)
            if bytes_of_view(step, scalars) > given.nbytes:
                needed = bytes_of_view(step, scalars)
                raise ProgramError(f"{program.name}: {step}: {needed} bytes in a tensor of {given.nbytes}")
    return scalars


def _workspace(tensor: ir.Tensor, scalars: dict[str, int]) -> Tensor:
    size = math.prod(max(evaluate(extent, scalars), 0) for extent in tensor.shape)
    return torch.zeros(max((size * tensor.dtype.bits + 7) // 8, 1), dtype=torch.uint8, device="cuda")


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _do(name: str, *arguments: object) -> None:
    code = getattr(_driver(), name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise ProgramError(f"{name}: {(text.value or b'unknown error').decode()} ({code})")
