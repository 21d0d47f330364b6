"""A checkpoint on disk, whatever its form: a config, and tensors by the names of transformers.

Nothing of the weights is read when one is opened, but everything that says where they are has been checked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from shoestring.errors import BadModelFile
from shoestring.layers.packed_linear import PackedWeight
from shoestring.models.gguf_decoder import ARCHITECTURES, GGUFDecoder
from shoestring.models.gguf_file import GGUFFile
from shoestring.models.mapped_file import HEADER_LIMIT_BYTES, map_file, shown
from shoestring.models.quantised_checkpoint import QuantisedTensors, WordFormat, is_readable
from shoestring.models.safetensors_file import (
    SafetensorsFile,
    ShardedSafetensors,
    open_safetensors,
    read_json,
)

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"


@runtime_checkable
class LazyTensors(Protocol):
    """Tensors by name, read from a file when they are asked for."""

    def __iter__(self) -> Iterator[str]: ...

    def __len__(self) -> int: ...

    def __contains__(self, name: object) -> bool: ...

    def __getitem__(self, name: str) -> Tensor: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a tensor is exact, without reading it."""
        ...

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor in any type."""
        ...


@runtime_checkable
class PackedTensors(LazyTensors, Protocol):
    """Tensors of which some are stored in codes that a packed layer can keep."""

    def can_stay_packed(self, name: str) -> bool:
        """Whether `packed` takes this tensor."""
        ...

    def packed(self, name: str) -> PackedWeight:
        """A matrix with its codes as they are."""
        ...

    def column_order(self, name: str) -> Tensor | None:
        """The input that each column of `packed(name)` belongs to; None where they are in order."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """path: the .gguf file or the folder. config: as `config.json` holds it. disk_bytes: of the weights."""

    path: Path
    config: dict[str, Any]
    tensors: LazyTensors
    generation_config: dict[str, Any] | None
    disk_bytes: int

    @property
    def is_gguf(self) -> bool:
        """Whether the weights are in a GGUF file."""
        return isinstance(self.tensors, GGUFDecoder)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a GGUF file of a known architecture, or a folder in the Hugging Face layout with safetensors.

    Raises: FileNotFoundError if there is nothing at `path` or no weights in it; BadModelFile, in one line,
    for a damaged file, a GGUF file of another architecture, or a config.json that is no JSON object.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    file = GGUFFile(path)
    decoder = GGUFDecoder(file)
    ends = {name: decoder.config[name] for name in _END_NAMES if name in decoder.config}
    return Checkpoint(path, decoder.config, decoder, ends or None, path.stat().st_size)


def is_known_gguf(file: GGUFFile) -> bool:
    """Whether `open_checkpoint` takes the architecture of this file."""
    architecture = file.metadata.get("general.architecture")
    return isinstance(architecture, str) and architecture in ARCHITECTURES


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder. Raises: FileNotFoundError if there is none; BadModelFile."""
    config = _read_json_file(folder / CONFIG)
    if not isinstance(config.get("model_type"), str):
        raise BadModelFile(f"{folder / CONFIG}: model_type is {shown(config.get('model_type'))}, no name")
    return config


_END_NAMES = ("bos_token_id", "eos_token_id", "pad_token_id")


def _open_folder(folder: Path) -> Checkpoint:
    config = read_config(folder)
    files = open_safetensors(folder)
    tensors: LazyTensors = files
    if is_readable(config):
        # What is read here is a plain model; the words are a matter of the folder.
        quantised = config.pop("quantization_config")
        try:
            words = WordFormat.of(quantised)
        except BadModelFile as error:
            raise BadModelFile(f"{folder}: {error}") from error
        tensors = QuantisedTensors(files, words, folder)
    generation = folder / GENERATION_CONFIG
    ends = _read_json_file(generation) if generation.exists() else None
    return Checkpoint(folder, config, tensors, ends, _disk_bytes(files))


def _disk_bytes(tensors: SafetensorsFile | ShardedSafetensors) -> int:
    files = tensors.files.values() if isinstance(tensors, ShardedSafetensors) else [tensors]
    return sum(file.path.stat().st_size for file in files)


def _read_json_file(path: Path) -> dict[str, Any]:
    mapped = map_file(path)
    if len(mapped) > HEADER_LIMIT_BYTES:
        raise BadModelFile(f"{path} has {len(mapped)} bytes, too many for a configuration; it is damaged")
    return read_json(path, mapped[:])
