"""Which storage multiplies a sparse matrix fastest here, by shape, tokens and sparsity: measured once.

The table lies in the cache folder, one file per processor; an entry is measured when first asked for.
"""

import enum
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from shoestring.files import cache_folder, write_text
from shoestring.kernels.native import processor_features
from shoestring.kernels.sparse.linear import DenseMatrix, Weights, sparse_linear
from shoestring.numbers.bitmap_matrix import BitmapMatrix
from shoestring.numbers.csr_matrix import CsrMatrix
from shoestring.numbers.tiled_csl import TiledCslMatrix

TABLE_VERSION = 1
SPARSITY_STEP = 0.05
"""Sparsities are told apart by so much."""
MOST_ENTRIES = 1 << 24
"""A larger matrix is judged by its first rows, so many entries of it: a pass still exceeds the caches."""
_ROUNDS = 5


class Storage(enum.Enum):
    """How a matrix may be stored."""

    DENSE = "dense"
    BITMAP = "bitmap"
    TILED_CSL = "tiled-csl"
    CSR = "csr"

    def store(self, matrix: Tensor) -> Weights:
        """A floating (rows, cols) matrix in this storage, in bfloat16. Raises: as its `from_dense`."""
        kinds: dict[Storage, Callable[[Tensor], Weights]] = {
            Storage.DENSE: DenseMatrix.from_dense,
            Storage.BITMAP: BitmapMatrix.from_dense,
            Storage.TILED_CSL: TiledCslMatrix.from_dense,
            Storage.CSR: CsrMatrix.from_dense,
        }
        return kinds[self](matrix)


def fastest_storage(
    rows: int, cols: int, tokens: int, sparsity: float | int, threads: int | None = None
) -> Storage:
    """The storage with the least time for x (tokens, cols) times a (rows, cols) matrix of that sparsity.

    threads: by default torch's. Tokens are told apart by powers of two, sparsities by steps of 0.05; the
    first call for an entry measures it (a second or so), later ones, in any process, look it up.

    Raises: ValueError for sizes below 1 or a sparsity outside 0 .. 1; NoCompiler.
    """
    if min(rows, cols, tokens) < 1 or not 0 <= sparsity <= 1:
        raise ValueError(
            f"rows={rows}, cols={cols}, tokens={tokens} must be 1 or more, sparsity={sparsity} within 0 .. 1"
        )
    threads = threads or torch.get_num_threads()
    tokens = 1 << (tokens - 1).bit_length()
    steps = round(sparsity / SPARSITY_STEP)
    key = f"{rows}x{cols}, {tokens} tokens, {steps * SPARSITY_STEP:.2f} sparse, {threads} threads"
    known = read_table().get(key)
    if known is None:
        known = measure_storages(rows, cols, tokens, steps * SPARSITY_STEP, threads)
        write_text(table_path(), json.dumps(_document(read_table() | {key: known}), indent=1) + "\n")
    return Storage(min(known, key=lambda name: known[name]))


def measure_storages(
    rows: int, cols: int, tokens: int, sparsity: float | int, threads: int
) -> dict[str, float]:
    """Seconds a product, by storage, on a random matrix; Tiled-CSL is left out where it would be refused.

    The least of a few rounds in which the storages take turns. Raises: NoCompiler.
    """
    generator = torch.Generator().manual_seed(0)
    judged = max(1, min(rows, MOST_ENTRIES // cols))
    matrix = torch.randn(judged, cols, generator=generator)
    matrix = matrix * (torch.rand(judged, cols, generator=generator) >= sparsity)
    # a tile of 128 x 64 is refused above half: a margin for the most crowded one
    candidates = [s for s in Storage if s is not Storage.TILED_CSL or sparsity >= 0.55]
    kernels = {s.value: sparse_linear(s.store(matrix)) for s in candidates}
    x = torch.randn(tokens, cols, generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        best = dict.fromkeys(kernels, math.inf)
        for _ in range(_ROUNDS):
            for name, kernel in kernels.items():
                start = time.perf_counter()
                kernel(x)
                best[name] = min(best[name], time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return {name: seconds * rows / judged for name, seconds in best.items()}


def table_path() -> Path:
    """The file of this processor's table."""
    return cache_folder("sparse_dispatch") / f"{_processor_key()}.json"


def read_table() -> dict[str, dict[str, float]]:
    """Seconds by storage of every entry; empty where there is no table, or none that this version reads."""
    try:
        document = json.loads(table_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict) or document.get("version") != TABLE_VERSION:
        return {}
    names = {storage.value for storage in Storage}
    entries = document.get("entries")
    return {
        key: times
        for key, times in (entries.items() if isinstance(entries, dict) else ())
        if isinstance(times, dict)
        and times
        and times.keys() <= names
        and all(isinstance(t, int | float) and t > 0 for t in times.values())
    }


def _document(entries: dict[str, dict[str, float]]) -> dict[str, object]:
    return {"version": TABLE_VERSION, "entries": entries}


@functools.cache
def _processor_key() -> str:
    return hashlib.sha256(processor_features().encode()).hexdigest()[:16]
