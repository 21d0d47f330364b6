"""Tokens of one sequence that a tiered cache stores alike: in codes of one width, or in full.

A group knows its slots, and takes part in attention without being decoded as a whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float16, Int, UInt8
from torch import Tensor

from shoestring.kernels.tier_codes import TierCodes
from shoestring.numbers.packing import pack_bits, unpack_bits
from shoestring.numbers.tier_format import decode_keys, decode_values

BLOCK_TOKENS = 1024
"""Tokens decoded at once inside attention; a multiple of 8, so that blocks start on a byte."""


@dataclass(frozen=True)
class FullGroup:
    """Keys and values as they are. slots: of the tokens, ascending; first_head: of the KV heads held."""

    slots: Int[Tensor, " tokens"]
    first_head: int
    k: Float[Tensor, "heads tokens dim"]
    v: Float[Tensor, "heads tokens dim"]

    @property
    def heads(self) -> int:
        """KV heads."""
        return self.k.shape[0]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything stored, by part of a cache."""
        return {"k": self.k, "v": self.v, "slots": self.slots}

    def keys_values(self) -> tuple[Tensor, Tensor]:
        """(heads, tokens, dim) each."""
        return self.k, self.v

    def scores(self, q: Float[Tensor, "heads rows dim"]) -> Float[Tensor, "heads rows tokens"]:
        """q·k of every token."""
        return q @ self.k.to(q.dtype).transpose(-1, -2)

    def weighted(self, p: Float[Tensor, "heads rows tokens"]) -> Float[Tensor, "heads rows dim"]:
        """Σ p v over the tokens."""
        return p @ self.v.to(p.dtype)

    def take(self, index: Int[Tensor, " kept"], slots: Int[Tensor, " kept"]) -> "FullGroup":
        """These tokens only, at these slots."""
        return replace(self, slots=slots.int(), k=self.k[:, index], v=self.v[:, index])

    def split(self) -> "list[FullGroup]":
        """A group for each head."""
        return [
            FullGroup(
                self.slots.clone(),
                self.first_head + head,
                self.k[head : head + 1].clone(),
                self.v[head : head + 1].clone(),
            )
            for head in range(self.heads)
        ]

    def clone(self) -> "FullGroup":
        """A copy that shares no storage."""
        return replace(self, slots=self.slots.clone(), k=self.k.clone(), v=self.v.clone())


@dataclass(frozen=True)
class CodedGroup:
    """Keys by channel and values by token, see `numbers.tier_format`.

    A row of `k_codes` is a channel, one of `v_codes` a token; channels are those of all heads in order. c:
    what the channels of the values were divided by.
    """

    slots: Int[Tensor, " tokens"]
    first_head: int
    heads: int
    bits: int
    k_codes: UInt8[Tensor, "channels k_bytes"]
    k_grid: Float16[Tensor, "channels 2"]
    v_codes: UInt8[Tensor, "tokens v_bytes"]
    v_grid: Float16[Tensor, "tokens 2"]
    c: Float16[Tensor, " channels"]
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        codes: TierCodes,
        c: Float16[Tensor, " channels"],
        slots: Int[Tensor, " tokens"],
        first_head: int,
        heads: int,
        bits: int,
        dtype: torch.dtype,
    ) -> "CodedGroup":
        """A group of tokens that are encoded already."""
        keys, values = (codes.k_codes, codes.k_grid), (codes.v_codes, codes.v_grid)
        return cls(slots.int(), first_head, heads, bits, *keys, *values, c, dtype)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything stored, by part of a cache."""
        return {
            "k": self.k_codes, "v": self.v_codes, "k_grid": self.k_grid, "v_grid": self.v_grid, "c": self.c,
            "slots": self.slots,
        }  # fmt: skip

    def keys_values(self) -> tuple[Tensor, Tensor]:
        """(heads, tokens, dim) each, decoded."""
        k = decode_keys(self.k_codes, self.k_grid, self.bits, len(self.slots))
        v = decode_values(self.v_codes, self.v_grid, self.c, self.bits)
        k, v = (t.unflatten(1, (self.heads, -1)).transpose(0, 1).to(self.dtype) for t in (k, v))
        return k, v

    def scores(self, q: Float[Tensor, "heads rows dim"]) -> Float[Tensor, "heads rows tokens"]:
        """q·k of every token, a block of tokens at a time: (q · scale) codes + q · lowest."""
        scale, lowest = (t.to(q.dtype).unflatten(0, (self.heads, -1)) for t in self.k_grid.unbind(-1))
        scaled, constant = q * scale[:, None], q @ lowest[..., None]
        parts = []
        for tokens in self._blocks():
            at = slice(tokens.start * self.bits // 8, -(-tokens.stop * self.bits // 8))
            codes = unpack_bits(self.k_codes[:, at], self.bits, tokens.stop - tokens.start)
            parts.append(scaled @ codes.to(q.dtype).unflatten(0, (self.heads, -1)) + constant)
        return torch.cat(parts, -1)

    def weighted(self, p: Float[Tensor, "heads rows tokens"]) -> Float[Tensor, "heads rows dim"]:
        """Σ p v over the tokens, a block of tokens at a time: (Σ (p · scale) codes + Σ p · lowest) · c."""
        scale, lowest = self.v_grid.to(p.dtype).unbind(-1)
        scaled, total = p * scale, (p @ lowest)[..., None]
        for tokens in self._blocks():
            codes = unpack_bits(self.v_codes[tokens], self.bits, len(self.c)).to(p.dtype)
            total = total + scaled[..., tokens] @ codes.unflatten(1, (self.heads, -1)).transpose(0, 1)
        return total * self.c.to(p.dtype).unflatten(0, (self.heads, 1, -1))

    def take(self, index: Int[Tensor, " kept"], slots: Int[Tensor, " kept"]) -> "CodedGroup":
        """These tokens only, at these slots; nothing is rounded again."""
        codes = unpack_bits(self.k_codes, self.bits, len(self.slots))[:, index]
        return replace(
            self, slots=slots.int(), k_codes=pack_bits(codes, self.bits), v_codes=self.v_codes[index],
            v_grid=self.v_grid[index],
        )  # fmt: skip

    def split(self) -> "list[CodedGroup]":
        """A group for each head; the grids of tokens are copied to each."""
        dim, found = len(self.c) // self.heads, []
        values = unpack_bits(self.v_codes, self.bits, len(self.c))
        for head in range(self.heads):
            channels = slice(head * dim, (head + 1) * dim)
            found.append(
                replace(
                    self, slots=self.slots.clone(), first_head=self.first_head + head, heads=1,
                    k_codes=self.k_codes[channels].clone(), k_grid=self.k_grid[channels].clone(),
                    v_codes=pack_bits(values[:, channels].contiguous(), self.bits),
                    v_grid=self.v_grid.clone(), c=self.c[channels].clone(),
                )
            )  # fmt: skip
        return found

    def clone(self) -> "CodedGroup":
        """A copy that shares no storage."""
        return replace(
            self, slots=self.slots.clone(), k_codes=self.k_codes.clone(), k_grid=self.k_grid.clone(),
            v_codes=self.v_codes.clone(), v_grid=self.v_grid.clone(), c=self.c.clone(),
        )  # fmt: skip

    def _blocks(self) -> Iterator[slice]:
        n = len(self.slots)
        for start in range(0, n, BLOCK_TOKENS):
            yield slice(start, min(start + BLOCK_TOKENS, n))


Group = FullGroup | CodedGroup
