"""IDX files, the plain array format of the MNIST family: a type byte, the sizes, then the values.

Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits", section "File formats".
"""

import gzip
import math
import os
import struct
import zlib

import numpy as np
from jaxtyping import UInt8

_UNSIGNED_BYTE = 0x08


def read_idx(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "..."]:
    """The uint8 array of an IDX file, gzip-compressed or plain.

    Raises: FileNotFoundError; ValueError naming the file when it is truncated, has bytes to spare, or holds
    something else.
    """
    path = os.fspath(path)
    return parse_idx(read_bytes(path), path)


def read_bytes(path: str) -> bytes:
    """What a file holds, decompressed if it is gzip. Raises: ValueError naming a damaged file."""
    with open(path, "rb") as file:
        content = file.read()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: truncated or damaged gzip file ({error}); provide it anew") from error


def parse_idx(content: bytes, name: str) -> UInt8[np.ndarray, "..."]:
    """The array in the bytes of an IDX file; `name` is what errors call it. Raises: as `read_idx`."""
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(f"{name}: not an IDX file; it begins with {content[:4].hex() or 'nothing'}")
    if content[2] != _UNSIGNED_BYTE:
        raise ValueError(f"{name}: holds values of IDX type {content[2]:#04x}; only bytes (0x08) are read")
    n_axes = content[3]
    start = 4 + 4 * n_axes
    if len(content) < start:
        raise ValueError(f"{name}: truncated inside its header; provide it anew")
    shape = struct.unpack(f">{n_axes}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"{name}: truncated or damaged: its header says {' x '.join(map(str, shape))} bytes, "
            f"{len(content) - start} follow; provide it anew"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()
