"""The Python side of `linear_kernel.h`: a linear layer's product as a struct that a team of threads runs."""

import ctypes
from pathlib import Path

HEADER = Path(__file__).with_suffix(".h")
_INCLUDE = f'#include "{HEADER.name}"'


class LinearKernel(ctypes.Structure):
    """`linear_kernel`, field by field; whoever makes one keeps the tensors that it points to alive."""

    _fields_ = (
        ("run", ctypes.c_void_p),
        ("scratch_bytes", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("weights", ctypes.c_void_p * 6),
        ("sizes", ctypes.c_int64 * 6),
    )


def with_header(source: Path) -> str:
    """The text of a C file with the header in the place of its include, so that the text is all there is."""
    return source.read_text(encoding="utf-8").replace(_INCLUDE, HEADER.read_text(encoding="utf-8"))
