"""Examples laid one after another in rows of one length, each with positions of its own that start at 0."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class PackedRows:
    """pos: within the example. example: which example of its row a place belongs to, −1 for padding."""

    pos: Int[Tensor, "rows length"]
    example: Int[Tensor, "rows length"]


def pack_lengths(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Numbers of the examples of each row, filled in the order given (first fit, few rows left open).

    Raises: ValueError for an example that is longer than a row, or empty.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for number, length in enumerate(lengths):
        if not 1 <= length <= row_length:
            raise ValueError(f"example {number} has {length} places; a row takes 1 to {row_length}.")
        row = next((i for i, free in enumerate(room) if free >= length), None)
        if row is None:
            rows.append([])
            room.append(row_length)
            row = len(rows) - 1
        rows[row].append(number)
        room[row] -= length
    return rows


def lay_out(rows: Sequence[Sequence[int]], lengths: Sequence[int], row_length: int) -> PackedRows:
    """Where everything lies; padding has position −1."""
    pos = torch.full((len(rows), row_length), -1)
    example = torch.full((len(rows), row_length), -1)
    for r, numbers in enumerate(rows):
        start = 0
        for order, number in enumerate(numbers):
            end = start + lengths[number]
            pos[r, start:end] = torch.arange(lengths[number])
            example[r, start:end] = order
            start = end
    return PackedRows(pos, example)


def block_diagonal(example: Int[Tensor, "rows length"]) -> Bool[Tensor, "rows 1 length length"]:
    """Which place sees which: those of its own example up to itself; padding sees nothing and is not seen."""
    same = (example[:, :, None] == example[:, None]) & (example >= 0)[:, :, None]
    return same.tril()[:, None]
