"""Safetensors files, one or a sharded set: their headers are proven consistent before a tensor is touched.

Source: the format as documented at https://huggingface.co/docs/safetensors: eight bytes of header length
(little-endian), a JSON object of name -> {dtype, shape, data_offsets}, then the bytes of all tensors, in
which there are no gaps.
"""

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from shoestring.errors import BadModelFile
from shoestring.models.mapped_file import HEADER_LIMIT_BYTES, drop_pages, map_file, shown

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
}
"""The types of the format that torch has, too. Types narrower than a byte are refused."""
_PREFIX_BYTES = 8
_MAX_DIMENSIONS = 64  # as many as torch takes


@dataclass(frozen=True)
class TensorSpan:
    """Where a tensor lies: bytes start to end of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile(Mapping[str, Tensor]):
    """The tensors of one file by name, as views of its mapped pages (nothing is copied).

    Writing to such a tensor changes it for all who hold a view of it in this process, and never the file.

    Raises: FileNotFoundError if there is no such file; BadModelFile, in one line, whatever is wrong with it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._mapped = map_file(self.path)
        # Pages that a cast has read are let go, which must not undo what somebody wrote to a view.
        self._for_casts = map_file(self.path)
        self.spans, self.metadata = _read_header(self.path, self._mapped)

    def __iter__(self) -> Iterator[str]:
        return iter(self.spans)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, name: str) -> Tensor:
        return self._view(self._mapped, name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which costs nothing."""
        return self.spans[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a tensor is stored."""
        return self.spans[name].dtype

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor in any type: a view where it is stored so, else a copy (the stored pages are let go)."""
        span = self.spans[name]
        if span.dtype == dtype:
            return self[name]
        cast = self._view(self._for_casts, name).to(dtype)
        drop_pages(self._for_casts, span.start, span.end - span.start)
        return cast

    def _view(self, mapped: mmap.mmap, name: str) -> Tensor:
        span = self.spans[name]
        nbytes = span.end - span.start
        if nbytes == 0:
            return torch.empty(span.shape, dtype=span.dtype)
        if span.start % span.dtype.itemsize:
            # An odd address is slow on some processors and forbidden on others.
            flat = torch.frombuffer(bytearray(mapped[span.start : span.end]), dtype=span.dtype)
            return flat.reshape(span.shape)
        codes = torch.frombuffer(mapped, dtype=torch.uint8, count=nbytes, offset=span.start)
        if span.dtype is torch.bool and codes.max() > 1:
            raise BadModelFile(f"{self.path}: {shown(name)} holds truth values other than 0 and 1")
        return codes.view(span.dtype).reshape(span.shape)


class ShardedSafetensors(Mapping[str, Tensor]):
    """The tensors of several files in one folder, as the index beside them distributes them.

    index: path of `….safetensors.index.json`. All headers are read and checked at once, the tensors lazily.
    Raises: as `SafetensorsFile` does; BadModelFile too where index and files disagree.
    """

    def __init__(self, index: str | Path) -> None:
        self.path = Path(index)
        places = _read_index(self.path)
        self.files = {name: SafetensorsFile(_shard(self.path, name)) for name in sorted(set(places.values()))}
        for tensor, name in places.items():
            if tensor not in self.files[name]:
                raise BadModelFile(f"{self.path}: {shown(tensor)} is not in {name}, where it should be")
        for name, file in self.files.items():
            if stray := next((tensor for tensor in file if places.get(tensor) != name), None):
                raise BadModelFile(f"{self.path}: {shown(stray)} is in {name}, where the index has it not")
        self._places = places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, name: str) -> Tensor:
        return self.files[self._places[name]][name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which costs nothing."""
        return self.files[self._places[name]].shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a tensor is stored."""
        return self.files[self._places[name]].dtype(name)

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor in any type, as `SafetensorsFile.read` gives it."""
        return self.files[self._places[name]].read(name, dtype)


def open_safetensors(folder: str | Path) -> SafetensorsFile | ShardedSafetensors:
    """The weights of a folder in the Hugging Face layout. Raises: as the two classes do."""
    folder = Path(folder)
    if (folder / SINGLE).exists():
        return SafetensorsFile(folder / SINGLE)
    if (folder / INDEX).exists():
        return ShardedSafetensors(folder / INDEX)
    raise FileNotFoundError(f"{folder} holds neither {SINGLE} nor {INDEX}")


def read_json(path: Path, data: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8 that names nothing twice. Raises: BadModelFile if `data` is anything else."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for name, value in pairs:
            if name in table:
                raise BadModelFile(f"{path}: {shown(name)} is there twice")
            table[name] = value
        return table

    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except BadModelFile:
        raise
    except (ValueError, RecursionError) as error:
        raise BadModelFile(f"{path}: no valid JSON ({shown(str(error))}); copy it again") from error
    if not isinstance(document, dict):
        raise BadModelFile(f"{path}: the JSON is a {type(document).__name__} instead of an object")
    return document


def _read_header(path: Path, mapped: mmap.mmap) -> tuple[dict[str, TensorSpan], dict[str, str]]:
    size = len(mapped)
    if size < _PREFIX_BYTES:
        raise BadModelFile(f"{path} has {size} bytes, too few for a safetensors file; copy it again")
    length = int.from_bytes(mapped[:_PREFIX_BYTES], "little")
    if length > HEADER_LIMIT_BYTES:
        raise BadModelFile(
            f"{path} asks for a header of {length} bytes, more than the {HEADER_LIMIT_BYTES} of the format; "
            "it is damaged or no safetensors file"
        )
    data = _PREFIX_BYTES + length
    if data > size:
        raise BadModelFile(f"{path} has {size} bytes but its header alone ends at {data}; copy it again")
    header = read_json(path, mapped[_PREFIX_BYTES:data])
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadModelFile(f"{path}: __metadata__ is not an object of strings")
    spans = {name: _span(path, name, entry, data) for name, entry in header.items()}
    _require_gapless(path, spans, data, size)
    return spans, metadata


def _span(path: Path, name: str, entry: Any, data: int) -> TensorSpan:
    where = f"{path}: {shown(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadModelFile(f"{where} is not described by exactly dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise BadModelFile(f"{where} has the type {shown(kind)}; known are {', '.join(DTYPES)}")
    if not _is_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise BadModelFile(f"{where} has the shape {shown(shape)} instead of a list of sizes")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise BadModelFile(f"{where} has the data_offsets {shown(offsets)} instead of [begin, end]")
    # Sizes beside a 0 count as well: torch refuses strides that do not fit 64 bits.
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize >= 2**63:
        raise BadModelFile(f"{where} has the shape {shown(shape)}, too large for any memory")
    wanted, held = math.prod(shape) * dtype.itemsize, offsets[1] - offsets[0]
    if wanted != held:
        raise BadModelFile(f"{where} of {kind} {shown(shape)} takes {wanted} bytes but is given {held}")
    return TensorSpan(dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _require_gapless(path: Path, spans: dict[str, TensorSpan], data: int, size: int) -> None:
    """Every byte after the header belongs to exactly one tensor."""
    end = data
    for name, span in sorted(spans.items(), key=lambda item: (item[1].start, item[1].end)):
        if span.end > size:
            raise BadModelFile(f"{path}: {shown(name)} ends at {span.end} of {size} bytes; copy it again")
        if span.start != end:
            what = "overlaps the tensor before it" if span.start < end else "leaves a gap before it"
            raise BadModelFile(f"{path}: {shown(name)} at byte {span.start} {what} (expected at {end})")
        end = span.end
    if end != size:
        raise BadModelFile(f"{path} has {size - end} bytes after its last tensor; it is damaged")


def _read_index(path: Path) -> dict[str, str]:
    mapped = map_file(path)
    if len(mapped) > HEADER_LIMIT_BYTES:
        raise BadModelFile(f"{path} has {len(mapped)} bytes, too many for an index; it is damaged")
    places = read_json(path, mapped[:]).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise BadModelFile(f"{path} has no weight_map of tensor names to file names")
    return places


def _shard(index: Path, name: str) -> Path:
    """The path of a shard; what leads out of the folder is refused. (A link inside it may lead anywhere:
    the cache of Hugging Face is made of such links, and only who owns the folder can place one.)"""
    place = PurePosixPath(name)
    odd = place.is_absolute() or ".." in place.parts or "\\" in name or ":" in name or not name.isprintable()
    if odd or place.suffix != ".safetensors":
        raise BadModelFile(f"{index}: the file {shown(name)} is not a .safetensors file in the same folder")
    path = index.parent / place
    if not path.exists():
        raise BadModelFile(f"{index}: {name} is missing; copy the folder again")
    return path
