"""Runs the text of a CUDA kernel on the processor, with threads for threads (`emulated.hpp`)."""

import ctypes
import math
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from shoestring.kernels.tile.expressions import Var, evaluate
from shoestring.kernels.tile.tensor import Pointer

SHIM = Path(__file__).parent / "emulated.hpp"
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to emulate a GPU with")


def emulate(kernel, arguments):
    """Run all blocks of a CudaKernel on NumPy arrays, which are changed in place."""
    names = [p.name for p in kernel.program.params]
    kinds = ["int" if isinstance(p, Var) else "void *" for p in kernel.program.params]
    fields = "".join(f"    {kind} {name}_;\n" for kind, name in zip(kinds, names, strict=True))
    call = ", ".join(
        f"({_c_type(p)})a->{p.name}_" if isinstance(p, Pointer) else f"a->{p.name}_"
        for p in kernel.program.params
    )
    entry = (
        f"struct all_arguments {{\n{fields}}};\n"
        "static void body(void *p) {\n    all_arguments *a = (all_arguments *)p;\n"
        f"    {kernel.program.name}({call});\n}}\n"
        'extern "C" int launch(all_arguments *a, int blocks) {\n'
        f"    return run_blocks(blocks, {kernel.threads}, body, a);\n}}\n"
    )
    assert not kernel.workspaces
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        source.write_text(SHIM.read_text() + kernel.body + entry)
        command = ["g++", "-std=c++17", "-O0", "-fPIC", "-shared", "-pthread", "-w", "-fno-strict-aliasing"]
        subprocess.run([*command, str(source), "-o", str(library)], check=True)
        launch = ctypes.CDLL(str(library)).launch

    class Arguments(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_int if kind == "int" else ctypes.c_void_p)
            for kind, name in zip(kinds, names, strict=True)
        ]

    values = {n: v if isinstance(v, int) else v.ctypes.data for n, v in arguments.items()}
    blocks = math.prod(evaluate(extent, arguments_of(kernel, arguments)) for extent in kernel.grid)
    code = launch(ctypes.byref(Arguments(**values)), blocks)
    assert code == 0, {1: "a misaligned access", 2: "a semaphore that nobody releases"}[code]


def arguments_of(kernel, arguments):
    return {p.name: arguments[p.name] for p in kernel.program.scalars}


def _c_type(pointer):
    bits = pointer.dtype.bits
    if bits == 32:
        return "float *" if pointer.dtype.is_float else "int32_t *"
    return "uint16_t *" if bits == 16 else "uint8_t *"
