"""Tiled-CSL: tiles of 128 x 64, each a list of 32-bit items that hold a value and its place in the tile.

An item is a 16-bit float in its upper half and a position in its lower: row · 64 + column′, where column′ =
column XOR (row mod 8) · 8 spreads the column of a tile over the banks of a GPU's shared memory. Lists are
padded to whole vectors of four items by explicit zeros at empty positions.

Source: Xia et al. 2023, "Flash-LLM: Enabling Cost-Effective and Highly-Efficient Large Generative Model
Inference with Unstructured Sparsity", the format and its ahead-of-time reordering.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from shoestring.notices import notice_fallback
from shoestring.numbers.sparse_values import ValueKind, decode_values, encode_matrix

TILE_ROWS, TILE_COLS = 128, 64
VECTOR = 4
"""Items that are loaded at once."""
LANES = 32
"""Threads of a warp; also the banks of shared memory."""
MOST_ITEMS = TILE_ROWS * TILE_COLS // 2
"""What the registers of the GPU kernel hold of a tile; a denser tile is refused, never cut short."""

Order = Callable[[np.ndarray, int], np.ndarray]
"""(banks of the items, lanes) -> the order in which they are stored."""


@dataclass(frozen=True)
class TiledCslMatrix:
    """A (rows, cols) matrix; tiles are stored row by row of tiles.

    items: value bits << 16 | position. tile_offsets: vectors of four items before each tile, and in all,
    twice: an empty tile behind the last lets a kernel fetch the next tile without a test.
    """

    rows: int
    cols: int
    kind: ValueKind
    items: Int32[Tensor, " items"]
    tile_offsets: Int32[Tensor, " tiles_and_two"]

    @classmethod
    def from_dense(
        cls,
        matrix: Tensor,
        kind: ValueKind = ValueKind.BFLOAT16,
        *,
        pad: bool = True,
        order: Order | None = None,
    ) -> "TiledCslMatrix":
        """Store what is not zero of a floating (rows, cols) matrix, rounded to `kind` (a 16-bit float).

        pad: fill up to whole tiles with zeros. order: rearranges the items of each tile (`bank_order`); any
        order means the same. Sparsity below a half is announced: the format is then larger than dense.

        Raises: as `encode_matrix`; ValueError for INT8, a shape that is not whole tiles where pad is False,
        or a tile with more than 4096 stored entries.
        """
        if kind is ValueKind.INT8:
            raise ValueError("Tiled-CSL stores 16-bit floats; use bfloat16 or float16")
        rows, cols = matrix.shape if matrix.dim() == 2 else (0, 0)
        if not pad and (rows % TILE_ROWS or cols % TILE_COLS):
            raise ValueError(
                f"{rows} x {cols} is not whole tiles of {TILE_ROWS} x {TILE_COLS}; allow padding (pad=True)"
            )
        encoded = encode_matrix(matrix, kind)
        patterns = torch.nn.functional.pad(encoded.patterns, (0, -cols % TILE_COLS, 0, -rows % TILE_ROWS))
        tiles = _in_tiles(patterns.numpy())
        counts = (tiles != 0).sum(1)
        _check_density(counts, rows * cols)
        lists = [_items(tile, order) for tile in tiles]
        vectors = np.array([len(items) // VECTOR for items in lists], dtype=np.int64)
        offsets = np.concatenate([[0], vectors.cumsum(), [vectors.sum()]])
        items = np.concatenate([*lists, np.empty(0, np.int32)]).astype(np.int32)
        return cls(rows, cols, kind, torch.from_numpy(items), torch.from_numpy(offsets.astype(np.int32)))

    def to_dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The (rows, cols) matrix."""
        across, down = self.tiles_across, -(-self.rows // TILE_ROWS)
        patterns = torch.zeros(across * down, TILE_ROWS * TILE_COLS, dtype=torch.int16)
        tile = torch.arange(across * down).repeat_interleave(VECTOR * self.tile_offsets[:-1].diff().long())
        position = unswizzle(self.items & 0xFFFF).long()
        patterns[tile, position] = (self.items >> 16).to(torch.int16)
        dense = patterns.reshape(down, across, TILE_ROWS, TILE_COLS).transpose(1, 2)
        dense = dense.reshape(down * TILE_ROWS, across * TILE_COLS)[: self.rows, : self.cols]
        return decode_values(dense.reshape(-1), self.kind).reshape(self.rows, self.cols).to(dtype)

    @property
    def tiles_across(self) -> int:
        """Tiles in a row of tiles."""
        return -(-self.cols // TILE_COLS)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors: 4 an item, padding items among them, and 4 a tile."""
        return self.items.nbytes + self.tile_offsets.nbytes

    def check(self) -> None:
        """Raises: ValueError naming the tile whose list no kernel could read."""
        offsets = self.tile_offsets.long()
        tiles = self.tiles_across * -(-self.rows // TILE_ROWS)
        if len(offsets) != tiles + 2:
            raise ValueError(f"there are {len(offsets)} tile offsets; {tiles} tiles take {tiles + 2}")
        if int(offsets[0]) != 0 or bool((offsets.diff() < 0).any()) or offsets[-1] != offsets[-2]:
            raise ValueError("tile offsets must start at 0, not fall, and repeat the last one")
        if VECTOR * int(offsets[-1]) != len(self.items):
            raise ValueError(f"{len(self.items)} items, but the offsets end at {VECTOR * int(offsets[-1])}")
        positions = (self.items & 0xFFFF).long()
        if len(positions) and int(positions.max()) >= TILE_ROWS * TILE_COLS:
            raise ValueError(f"position {int(positions.max())} lies outside a tile")
        tile = torch.arange(tiles).repeat_interleave(VECTOR * offsets[:-1].diff())
        places = tile * TILE_ROWS * TILE_COLS + positions
        if len(places.unique()) != len(places):
            doubled = places[torch.bincount(places, minlength=1)[places] > 1]
            raise ValueError(f"tile {int(doubled[0]) // (TILE_ROWS * TILE_COLS)} names a position twice")


def tiled_csl_bytes(items: int, rows: int, cols: int) -> int:
    """Bytes for so many items (stored entries and padding): 4 each, and 4 for each tile and two more."""
    return 4 * items + 4 * (-(-rows // TILE_ROWS) * -(-cols // TILE_COLS) + 2)


def swizzle(position: Tensor) -> Tensor:
    """row · 64 + column -> row · 64 + (column XOR (row mod 8) · 8)."""
    return position ^ (((position >> 6) & 7) << 3)


def unswizzle(position: Tensor) -> Tensor:
    """The inverse of `swizzle`, which is the same map: the row is not touched."""
    return swizzle(position)


def bank_of(position: np.ndarray) -> np.ndarray:
    """The bank of shared memory that a swizzled position is written to: (column′ / 2) mod 32."""
    return (position & 63) // 2 % LANES


def naive_bank_order(banks: np.ndarray, lanes: int = LANES) -> np.ndarray:
    """An order of the items in which the lanes that write together hit different banks where they can.

    The vectors of four items are dealt to `lanes` lanes; in each of four steps every lane writes one item.
    The last, incomplete round of vectors is filled first, then the full ones; a step takes its items from the
    fullest banks that it has not used yet, and from used ones only when no other has any left.
    """
    buckets = [list(np.flatnonzero(banks == bank)) for bank in range(LANES)]
    vectors = len(banks) // VECTOR
    stored = np.empty(len(banks), dtype=np.int64)
    tail = vectors % lanes
    rounds = [(vectors - tail, tail)] if tail else []
    rounds += [(first, lanes) for first in range(0, vectors - tail, lanes)]
    for first, width in rounds:
        for step in range(VECTOR):
            used: set[int] = set()
            for lane in range(width):
                free = [b for b in range(LANES) if buckets[b] and b not in used]
                choices = free or [b for b in range(LANES) if buckets[b]]
                bank = max(choices, key=lambda b: len(buckets[b]))
                used.add(bank)
                stored[(first + lane) * VECTOR + step] = buckets[bank].pop(0)
    return stored


def bank_conflicts(positions: np.ndarray, lanes: int = LANES) -> int:
    """Writes that wait for another of the same step, over all steps of a tile's list."""
    banks = bank_of(positions).reshape(-1, VECTOR)
    waiting = 0
    for first in range(0, len(banks), lanes):
        for step in range(VECTOR):
            together = banks[first : first + lanes, step]
            waiting += len(together) - len(np.unique(together))
    return waiting


def _in_tiles(patterns: np.ndarray) -> np.ndarray:
    rows, cols = patterns.shape
    grid = patterns.reshape(rows // TILE_ROWS, TILE_ROWS, cols // TILE_COLS, TILE_COLS)
    return grid.transpose(0, 2, 1, 3).reshape(-1, TILE_ROWS * TILE_COLS)


def _items(tile: np.ndarray, order: Order | None) -> np.ndarray:
    """The list of one tile, its pattern given by unswizzled position."""
    place = np.flatnonzero(tile)
    position = _swizzled(place)
    missing = -len(place) % VECTOR
    if missing:
        empty = np.flatnonzero(tile == 0)
        load = np.bincount(bank_of(position), minlength=LANES)
        # padding goes to the banks with the fewest items
        empty = empty[np.argsort(load[bank_of(_swizzled(empty))], kind="stable")][:missing]
        place, position = np.concatenate([place, empty]), np.concatenate([position, _swizzled(empty)])
    items = (tile[place].astype(np.uint16).astype(np.uint32) << 16 | position.astype(np.uint32)).view(
        np.int32
    )
    return items if order is None else items[order(bank_of(position), LANES)]


def _swizzled(place: np.ndarray) -> np.ndarray:
    return place ^ (((place >> 6) & 7) << 3)


def _check_density(counts: np.ndarray, entries: int) -> None:
    if len(counts) and counts.max() > MOST_ITEMS:
        tile = int(counts.argmax())
        raise ValueError(
            f"tile {tile} has {counts[tile]} stored entries, over {MOST_ITEMS} (half of it): Tiled-CSL would "
            "lose values; keep this matrix dense or use the bitmap"
        )
    if counts.sum() > entries / 2:
        notice_fallback(
            "Tiled-CSL", f"{counts.sum()} of {entries} entries stored: larger than a dense matrix"
        )
