"""Examples as packed rows of ids, and the hook that keeps attention inside each of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.data.mixed_examples import TokenExample
from shoestring.data.packed_examples import PackedRows, block_diagonal, lay_out, pack_lengths
from shoestring.layers.attention_masks import Explicit
from shoestring.models.hooks import AttnPlan, Context

ROW = 256
"""Tokens of a packed row; attention over longer ones costs more than it saves in padding."""


@dataclass(frozen=True)
class PackedText:
    """ids: 0 where there is padding. place: of each example its row and first column."""

    ids: Int[Tensor, "rows length"]
    rows: PackedRows
    place: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, examples: Sequence[TokenExample], row_length: int = ROW) -> "PackedText":
        """Rows of `row_length` tokens, or as long as the longest example.

        Raises: ValueError for an example without tokens."""
        lengths = [len(example) for example in examples]
        row_length = max(row_length, *lengths)
        order = pack_lengths(lengths, row_length)
        rows = lay_out(order, lengths, row_length)
        ids, place = torch.zeros_like(rows.pos), [(0, 0)] * len(examples)
        for row, numbers in enumerate(order):
            start = 0
            for number in numbers:
                ids[row, start : start + lengths[number]] = examples[number].ids
                place[number] = (row, start)
                start += lengths[number]
        return cls(ids, rows, tuple(place))


class WithinExamples:
    """A hook: a place sees its own example only, up to itself; with a window, positions less than it away."""

    def __init__(self, rows: PackedRows, window: int | None = None) -> None:
        seen = block_diagonal(rows.example)
        if window is not None:
            seen = seen & ((rows.pos[:, :, None] - rows.pos[:, None]) < window)[:, None]
        self._plan = AttnPlan(mask=Explicit(seen))

    def attn_plan(self, layer: int, q: Tensor, pos: Tensor, ctx: Context) -> AttnPlan:
        """The block-diagonal mask."""
        return self._plan
