"""Where the active tokens of a batch go when the others are left out, and how they come back.

Token t is the index[t]-th active one of its sequence, index = active · cumsum(active); active tokens of one
sequence move together, S is the largest number of them in the batch. Both directions move whole rows from
distinct places to distinct places, so each is the gradient of the other and neither adds anything up.

Source: Ren et al. 2023, "Sparse Modular Activation for Efficient Sequence Modeling", section 3.1.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class CompressedPlaces:
    """The active tokens of a batch as sequences without gaps, (batch, slots).

    `slots` is the largest number of active tokens of a sequence, and 1 where there is none at all: then there
    is one empty slot, so that shapes and gradients exist. Slots that no token fills are zero and come last.
    Every sequence is compressed by itself: what one keeps does not depend on its neighbours in the batch.
    """

    def __init__(self, active: Bool[Tensor, "batch seq"]) -> None:
        self.batch, self.seq = active.shape
        counts = active.sum(1)
        most, least = torch.stack([counts.amax(), counts.amin()]).tolist() if counts.numel() else (0, 0)
        self.slots = max(most, 1)
        self.is_whole = least == self.seq
        """Every token is active: nothing moves."""
        self.is_full = least == self.slots
        """Every slot is filled."""
        self.counts: Int[Tensor, " batch"] = counts
        rows = active.flatten().nonzero().squeeze(1)
        self.rows: Int[Tensor, " tokens"] = rows
        """Places of the active tokens in the flattened batch."""
        starts = torch.arange(self.batch, device=active.device) * self.slots
        ranks = torch.arange(len(rows), device=active.device) - (counts.cumsum(0) - counts).repeat_interleave(
            counts, output_size=len(rows)
        )
        self._to = ranks + starts.repeat_interleave(counts, output_size=len(rows))

    @property
    def filled(self) -> Bool[Tensor, "batch slots"]:
        """Which slots hold a token."""
        return torch.arange(self.slots, device=self.counts.device) < self.counts[:, None]

    @property
    def positions(self) -> Int[Tensor, "batch slots"]:
        """Where the token of a slot stood in its sequence; of an empty slot, its own number."""
        ahead = torch.arange(self.slots, device=self.counts.device).expand(self.batch, -1).clone()
        return ahead.flatten().index_copy(0, self._to, self.rows % self.seq).view(self.batch, self.slots)

    def compress(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch slots dim"]:
        """The active tokens, in order; empty slots are zero."""
        if self.is_whole:
            return x
        size = self.batch * self.slots
        moved = _MoveRows.apply(x.flatten(0, 1), self.rows, None if self.is_full else self._to, size)
        return moved.view(self.batch, self.slots, -1)

    def extract(self, h: Float[Tensor, "batch slots dim"]) -> Float[Tensor, "batch seq dim"]:
        """Every slot back at its place; tokens that are not active are zero."""
        if self.is_whole:
            return h
        source = None if self.is_full else self._to
        moved = _MoveRows.apply(h.flatten(0, 1), source, self.rows, self.batch * self.seq)
        return moved.view(self.batch, self.seq, -1)


class _MoveRows(torch.autograd.Function):
    """y[to] = x[source], zero elsewhere; None stands for all rows in order. Its gradient moves them back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor | None, to: Tensor | None, size: int) -> Tensor:
        ctx.places = source, to, len(x)
        taken = x if source is None else x.index_select(0, source)
        return taken if to is None else x.new_zeros(size, x.shape[1]).index_copy_(0, to, taken)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        source, to, size = ctx.places
        return _MoveRows.apply(grads[0], to, source, size), None, None, None


def naive_compression_index(active: Bool[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """The equation: the number of an active token, from 1; 0 for the others."""
    return active * active.cumsum(1)


def naive_compress(
    x: Float[Tensor, "batch seq dim"], active: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch slots dim"]:
    """Token by token into a row of slots whose slot 0 takes what is left out, and is dropped."""
    index = naive_compression_index(active)
    slots = max(int(index.amax()), 1)
    out = [[x.new_zeros(x.shape[2]) for _ in range(slots + 1)] for _ in range(len(x))]
    for sample, places in enumerate(index.tolist()):
        for token, place in enumerate(places):
            out[sample][place] = x[sample, token]
    return torch.stack([torch.stack(row[1:]) for row in out])


def naive_extract(
    h: Float[Tensor, "batch slots dim"], active: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq dim"]:
    """Slot index[t] for token t, from a row with a zero slot in front."""
    padded = torch.cat([torch.zeros_like(h[:, :1]), h], 1)
    index = naive_compression_index(active)
    return torch.stack([row[places] for row, places in zip(padded, index, strict=True)])
