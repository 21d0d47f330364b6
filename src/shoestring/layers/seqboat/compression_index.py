"""Where the active tokens of a batch go when the others are left out, and how they come back.

Token t is the index[t]-th active one of its sequence, index = active · cumsum(active); active tokens of one
sequence move together, S is the largest number of them in the batch. Both directions move whole rows from
distinct places to distinct places, so each is the gradient of the other and neither adds anything up.

Source: Ren et al. 2023, "Sparse Modular Activation for Efficient Sequence Modeling", section 3.1.
"""

import functools

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoestring.kernels.compressed_rows import compressed_sum, move_rows, places_of


class CompressedPlaces:
    """The active tokens of a batch as sequences without gaps, (batch, slots).

    `slots` is the largest number of active tokens of a sequence, and 1 where there is none at all: then there
    is one empty slot, so that shapes and gradients exist. Slots that no token fills are zero and come last.
    Every sequence is compressed by itself: what one keeps does not depend on its neighbours in the batch.
    """

    def __init__(self, active: Bool[Tensor, "batch seq"]) -> None:
        self.batch, self.seq = active.shape
        self._rows = places_of(active)
        self.slots = self._rows.slots
        self.counts: Int[Tensor, " batch"] = self._rows.counts
        self.is_whole = self._rows.fewest == self.seq
        """Every token is active: nothing moves."""
        self.is_full = self._rows.fewest == self.slots
        """Every slot is filled."""

    @property
    def filled(self) -> Bool[Tensor, "batch slots"]:
        """Which slots hold a token."""
        return torch.arange(self.slots, device=self.counts.device) < self.counts[:, None]

    @functools.cached_property
    def positions(self) -> Int[Tensor, "batch slots"]:
        """Where the token of a slot stood in its sequence; of an empty slot, its own number."""
        token_of = self._rows.token_of.view(self.batch, self.slots)
        if self.is_full:
            return token_of % self.seq
        own = torch.arange(self.slots, device=token_of.device)
        return torch.where(token_of < 0, own, token_of % self.seq)

    def compress(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch slots dim"]:
        """The active tokens, in order; empty slots are zero."""
        if self.is_whole:
            return x
        moved = move_rows(x.flatten(0, 1), self._rows.token_of, self._rows.slot_of)
        return moved.view(self.batch, self.slots, -1)

    def extract(
        self,
        h: Float[Tensor, "batch slots dim"],
        weight: Float[Tensor, "batch seq 1"] | None = None,
        *,
        to: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "batch seq dim"]:
        """Every slot back at its place, times the weight of its token; tokens that are not active are zero.

        With `to`, two tensors (batch, seq, dim): silu(to[0] + to[1] + that).
        """
        if self.is_whole and weight is None and to is None:
            return h
        flat = None if weight is None else weight.flatten()
        onto = None if to is None else (to[0].flatten(0, 1), to[1].flatten(0, 1))
        places = None if self.is_whole else self._rows
        return compressed_sum(h.flatten(0, 1), places, flat, to=onto).view(self.batch, self.seq, -1)


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
