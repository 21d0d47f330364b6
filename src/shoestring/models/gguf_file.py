"""GGUF files: every length, count and offset is held against the file before it is used.

Source: the format as documented in ggml (docs/gguf.md), versions 2 and 3: magic, version, counts, key/value
pairs, tensor descriptions, padding to the alignment, tensor data. Everything is little-endian.
"""

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from shoestring.errors import BadModelFile
from shoestring.models.mapped_file import HEADER_LIMIT_BYTES, drop_pages, map_file, shown

PLAIN = {
    Kind.F32: torch.float32,
    Kind.F16: torch.float16,
    Kind.BF16: torch.bfloat16,
    Kind.F64: torch.float64,
    Kind.I8: torch.int8,
    Kind.I16: torch.int16,
    Kind.I32: torch.int32,
    Kind.I64: torch.int64,
}
"""The types of ggml that torch has, too. The others are blocks of codes and scales."""
_BLOCK_NAMES = (
    "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K TQ1_0 TQ2_0 MXFP4 NVFP4 "
    "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS"
)
BLOCKS = frozenset(Kind[name] for name in _BLOCK_NAMES.split() if name in Kind.__members__)
"""The types of blocks that `gguf.dequantize` decodes."""
_READABLE = {int(kind): kind for kind in (*PLAIN, *BLOCKS)}
DEFAULT_ALIGNMENT = 32
_HEADER = struct.Struct("<4sIQQ")
_VERSIONS = (2, 3)
_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("u1"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
"""The types of metadata with a fixed size, by their number in the format."""
_MAX_DIMENSIONS = 4
_MAX_NESTING = 4
_MAX_NAME_BYTES = 65535
_LENGTH = struct.Struct("<Q")
_SMALLEST_ARRAY_BYTES = 4 + 8
_SMALLEST_PAIR_BYTES = 8 + 4 + 1
_SMALLEST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8
_CHUNK_ELEMENTS = 1 << 17  # half a MiB once decoded, and all that decoding needs beside its result


@dataclass(frozen=True)
class TensorBlocks:
    """Where a tensor lies and how it is stored. shape: in torch's order, rows first."""

    kind: Kind
    shape: tuple[int, ...]
    start: int
    nbytes: int


# Not Mapping[str, Tensor]: whoever checks types at run time would decode a tensor to look at its class.
class GGUFFile(Mapping):
    """The metadata of a GGUF file and its tensors by their names there, decoded when they are asked for.

    metadata: numbers as int, float or bool, arrays of numbers as NumPy arrays, other arrays as lists.
    Values are exactly the stored ones: blocks decode to float32, plain types stay as they are.

    Raises: FileNotFoundError if there is no such file; BadModelFile, in one line, whatever is wrong with it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._mapped = map_file(self.path)
        reader = _Reader(self.path, self._mapped)
        magic, version, n_tensors, n_pairs = reader.header()
        _check_version(self.path, magic, version)
        self.version = version
        self.metadata: dict[str, Any] = reader.pairs(n_pairs)
        self.tensors = reader.tensors(n_tensors, self.metadata)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name, self.dtype(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which costs nothing."""
        return self.tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a tensor is exact: its own, or float32 for blocks."""
        return PLAIN.get(self.tensors[name].kind, torch.float32)

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor as a copy of its own in any type; the pages of the file are let go again."""
        stored = self.tensors[name]
        flat = torch.empty(math.prod(stored.shape), dtype=dtype)
        block, block_bytes = gguf.GGML_QUANT_SIZES[stored.kind]
        # A row is a whole number of blocks, so the tensor is one long row and can be cut after any block.
        n_blocks, step = stored.nbytes // block_bytes, max(1, _CHUNK_ELEMENTS // block)
        for first in range(0, n_blocks, step):
            count = min(step, n_blocks - first)
            data = self._bytes(stored.start + first * block_bytes, count * block_bytes)
            flat[first * block : (first + count) * block] = _decode(data, stored.kind)
        drop_pages(self._mapped, stored.start, stored.nbytes)
        return flat.reshape(stored.shape)

    def blocks(self, name: str) -> np.ndarray:
        """The stored bytes of a tensor, (rows, bytes per row), as a view of the file."""
        stored = self.tensors[name]
        return self._bytes(stored.start, stored.nbytes).reshape(math.prod(stored.shape[:-1]), -1)

    def _bytes(self, start: int, nbytes: int) -> np.ndarray:
        return np.frombuffer(self._mapped, dtype=np.uint8, count=nbytes, offset=start)


def _decode(data: np.ndarray, kind: Kind) -> Tensor:
    if (dtype := PLAIN.get(kind)) is not None:
        return torch.from_numpy(data).view(dtype)
    with np.errstate(all="ignore"):  # a scale may be infinite: what is stored is what is given
        return torch.from_numpy(gguf.dequantize(data[None], kind)[0])


class _Reader:
    """Reads on from a position; nothing is read, and nothing allocated, that the file is too short for."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path, self.mapped = path, mapped
        self.end = min(len(mapped), HEADER_LIMIT_BYTES)
        self.position = 0

    def header(self) -> tuple[bytes, int, int, int]:
        if len(self.mapped) >= 4 and self.mapped[:4] != b"GGUF":
            raise BadModelFile(f"{self.path} is no GGUF file (its first bytes are not GGUF)")
        return _HEADER.unpack_from(self.mapped, self._take(_HEADER.size, "the header"))

    def pairs(self, count: int) -> dict[str, Any]:
        self._require(count, _SMALLEST_PAIR_BYTES, "key/value pairs")
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self._name("a key")
            if key in metadata:
                raise BadModelFile(f"{self.path}: the key {shown(key)} is there twice")
            metadata[key] = self._value(self._int(4, shown(key)), shown(key), 0)
        return metadata

    def tensors(self, count: int, metadata: dict[str, Any]) -> dict[str, TensorBlocks]:
        self._require(count, _SMALLEST_TENSOR_BYTES, "tensors")
        alignment = _alignment(self.path, metadata)
        tensors: dict[str, TensorBlocks] = {}
        for _ in range(count):
            name = self._name("the name of a tensor")
            if name in tensors:
                raise BadModelFile(f"{self.path}: the tensor {shown(name)} is there twice")
            tensors[name] = self._tensor(shown(name), alignment)
        data = -(-self.position // alignment) * alignment
        placed = {name: _moved(tensor, data) for name, tensor in tensors.items()}
        _require_apart(self.path, placed, len(self.mapped))
        return placed

    def _tensor(self, name: str, alignment: int) -> TensorBlocks:
        where = f"{self.path}: the tensor {name}"
        n_dims = self._int(4, name)
        if not 1 <= n_dims <= _MAX_DIMENSIONS:
            raise BadModelFile(f"{where} has {n_dims} dimensions instead of 1 to {_MAX_DIMENSIONS}")
        sizes = [self._int(8, name) for _ in range(n_dims)]
        number, offset = self._int(4, name), self._int(8, name)
        kind = _READABLE.get(number)
        if kind is None:
            raise BadModelFile(f"{where} is of type {number}, which is unknown or cannot be decoded")
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if 0 in sizes or sizes[0] % block:
            raise BadModelFile(
                f"{where} has the sizes {sizes}; {kind.name} needs rows of a multiple of {block}"
            )
        if offset % alignment:
            raise BadModelFile(f"{where} starts at {offset}, no multiple of the alignment {alignment}")
        return TensorBlocks(kind, tuple(reversed(sizes)), offset, math.prod(sizes) // block * block_bytes)

    def _value(self, number: int, key: str, depth: int) -> Any:
        if (dtype := _NUMBERS.get(number)) is not None:
            value = self._numbers(dtype, 1, key)[0]
            return self._truth(value, key) if number == _BOOL else value.item()
        if number == _STRING:
            return self._string(key)
        if number != _ARRAY:
            raise BadModelFile(f"{self.path}: {key} has a value of the unknown type {number}")
        if depth == _MAX_NESTING:
            raise BadModelFile(f"{self.path}: {key} holds arrays nested more than {_MAX_NESTING} deep")
        return self._array(key, depth)

    def _array(self, key: str, depth: int) -> Any:
        number, count = self._int(4, key), self._int(8, key)
        if (dtype := _NUMBERS.get(number)) is not None:
            values = self._numbers(dtype, count, key)
            return self._truth(values, key) if number == _BOOL else values
        if number == _STRING:
            return self._strings(count, key)
        self._require(count, _SMALLEST_ARRAY_BYTES, f"elements of {key}")
        return [self._value(number, key, depth + 1) for _ in range(count)]

    def _strings(self, count: int, key: str) -> list[str]:
        """As often `_string`; a vocabulary is the one part of a header whose length is felt."""
        self._require(count, _LENGTH.size, f"elements of {key}")
        mapped, end, start = self.mapped, self.end, self.position
        texts = []
        for _ in range(count):
            stop = start + _LENGTH.size
            if stop <= end:
                start, stop = stop, stop + _LENGTH.unpack_from(mapped, start)[0]
            if stop > end:
                self._take(stop - self.position, key)  # raises
            texts.append(mapped[start:stop])
            start = stop
        self.position = start
        return [self._text(text, key) for text in texts]

    def _numbers(self, dtype: np.dtype, count: int, key: str) -> np.ndarray:
        self._require(count, dtype.itemsize, f"elements of {key}")
        start = self._take(count * dtype.itemsize, key)
        return np.frombuffer(self.mapped, dtype=dtype, count=count, offset=start)

    def _truth(self, values: Any, key: str) -> Any:
        if np.any(values > 1):
            raise BadModelFile(f"{self.path}: {key} holds truth values other than 0 and 1")
        return bool(values) if np.ndim(values) == 0 else values.astype(bool)

    def _name(self, what: str) -> str:
        text = self._string(what)
        if not 0 < len(text) <= _MAX_NAME_BYTES:
            raise BadModelFile(f"{self.path}: {what} has {len(text)} characters instead of 1 to 65535")
        return text

    def _string(self, what: str) -> str:
        length = self._int(8, what)
        start = self._take(length, what)
        return self._text(self.mapped[start : start + length], what)

    def _text(self, data: bytes, what: str) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadModelFile(f"{self.path}: {what} is no valid UTF-8 text") from error

    def _int(self, nbytes: int, what: str) -> int:
        start = self._take(nbytes, what)
        return int.from_bytes(self.mapped[start : start + nbytes], "little")

    def _require(self, count: int, smallest: int, what: str) -> None:
        if count * smallest > self.end - self.position:
            raise BadModelFile(f"{self.path} claims {count} {what}, more than fit into it; copy it again")

    def _take(self, nbytes: int, what: str) -> int:
        start = self.position
        if nbytes > self.end - start:
            limited = self.end < len(self.mapped)
            reason = f"its description exceeds {HEADER_LIMIT_BYTES} bytes" if limited else "copy it again"
            raise BadModelFile(f"{self.path} ends within {what}: {reason}")
        self.position = start + nbytes
        return start


def _check_version(path: Path, magic: bytes, version: int) -> None:
    if version and version & 0xFFFF == 0:
        raise BadModelFile(f"{path} is a big-endian GGUF file; convert it to little-endian")
    if version not in _VERSIONS:
        raise BadModelFile(f"{path} is GGUF version {version}; versions 2 and 3 can be read")


def _alignment(path: Path, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or value < 1 or value & (value - 1):
        raise BadModelFile(f"{path}: general.alignment is {shown(value)} instead of a power of two")
    return value


def _moved(tensor: TensorBlocks, by: int) -> TensorBlocks:
    return TensorBlocks(tensor.kind, tensor.shape, tensor.start + by, tensor.nbytes)


def _require_apart(path: Path, tensors: dict[str, TensorBlocks], size: int) -> None:
    end, before = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        last = tensor.start + tensor.nbytes
        if last > size:
            raise BadModelFile(f"{path} has {size} bytes, but {shown(name)} ends at {last}; copy it again")
        if tensor.start < end:
            raise BadModelFile(f"{path}: the tensors {shown(before)} and {shown(name)} overlap")
        end, before = last, name
