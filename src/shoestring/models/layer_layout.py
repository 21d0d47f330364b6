"""What mixes the tokens in each layer of a decoder: attention, a Mamba mixer, or nothing."""

import enum
from collections.abc import Mapping
from typing import Any

from shoestring.errors import BadModelFile
from shoestring.layers.mamba.grouped_mamba import MambaShape, ScanKind

HYBRID = "hybrid_"
"""What `model_type` begins with where a layer has no attention: other libraries then refuse the folder
instead of filling the gaps with random weights."""


class LayerKind(enum.StrEnum):
    """One letter a layer, as in `layout` of a `config.json`."""

    ATTENTION = "t"
    MAMBA = "m"
    IDENTITY = "i"
    """Nothing is mixed; the feed-forward network stays."""
    SKIPPED = "s"
    """The layer gives back what it gets, its feed-forward network left out too (the authors' code has only
    this form of identity, and calls it i)."""


Layout = tuple[LayerKind, ...]


def read_layout(letters: Any, layers: int) -> Layout:
    """The layout that these letters, a string or a list, name. Raises: BadModelFile."""
    known = ", ".join(f"{kind.value} ({kind.name.lower()})" for kind in LayerKind)
    if not isinstance(letters, str | list | tuple) or len(letters) != layers:
        raise BadModelFile(f"config: layout is {letters!r}; it must name {layers} layers, one letter each.")
    try:
        return tuple(LayerKind(letter) for letter in letters)
    except ValueError:
        raise BadModelFile(f"config: layout is {letters!r}; its letters are {known}.") from None


def write_layout(layout: Layout) -> str:
    """The letters of a layout."""
    return "".join(layout)


def read_mamba(fields: Any) -> MambaShape:
    """The mixers' sizes in a `config.json`. Raises: BadModelFile."""
    if not isinstance(fields, Mapping):
        raise BadModelFile(f"config: mamba is {fields!r}; it must be a table of sizes, such as d_state.")
    given = {"scan": ScanKind.SELECTIVE.value, **fields}
    try:
        return MambaShape(**{**given, "scan": ScanKind(given["scan"])})
    except (TypeError, ValueError) as error:
        raise BadModelFile(f"config: mamba: {error}") from error


def write_mamba(shape: MambaShape) -> dict[str, Any]:
    """The fields that `read_mamba` reads."""
    return {
        "d_state": shape.d_state,
        "d_conv": shape.d_conv,
        "dt_rank": shape.dt_rank,
        "scan": shape.scan.value,
    }
