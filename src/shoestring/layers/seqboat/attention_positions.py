"""Three ways of telling attention where its tokens stood, for sequences from which tokens were left out.

The first two speak of places in the original sequence, which travel with the tokens; the third of places in
what is left.

Source: Ma et al. 2023, "Mega", section 3.2 (the bias of original distances); Su et al. 2021, "RoFormer"
(rotary); Ren et al. 2023, "Sparse Modular Activation for Efficient Sequence Modeling", with its code.
"""

import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoestring.kernels.gated_attention import Turns
from shoestring.layers.rotary import Rope, rotate
from shoestring.layers.seqboat.attention_reach import Reach, Window
from shoestring.notices import notice_fallback

KINDS = ("rotary", "simple", "local_pos")
MOST_ROWS = 1 << 16
"""Positions whose angles are kept from call to call."""


class Positions(nn.Module):
    """What a way of telling positions may do: turn queries and keys, or add to scores. This does neither."""

    adds_bias = False

    def turn(
        self, x: Float[Tensor, "batch n vectors dim"], positions: Int[Tensor, "batch n"]
    ) -> Float[Tensor, "batch n vectors dim"]:
        """Queries and keys of tokens at original positions."""
        return x

    def turns(self, positions: Int[Tensor, "batch n"]) -> Turns | None:
        """What `turn` does, as tables of angles; None where it does nothing."""
        return None

    def bias(
        self,
        query: Int[Tensor, "*batch queries"],
        key: Int[Tensor, "*batch keys"],
        apart: Int[Tensor, "*#batch queries keys"],
    ) -> Float[Tensor, "*_batch queries keys"]:
        """What is added to scores. query, key: original positions; apart: key minus query in what is left."""
        raise NotImplementedError(f"{type(self).__name__} adds no bias")


class RotaryPositions(Positions):
    """Queries and keys turned by angles that grow with the original position.

    Raises: ValueError for odd d_qk.
    """

    def __init__(self, d_qk: int, base: float = 10_000.0) -> None:
        super().__init__()
        if d_qk % 2:
            raise ValueError(f"d_qk={d_qk} must be even: rotary positions turn pairs of channels")
        self.rope, self.d_qk = Rope(base), d_qk

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = self.rope.tables(positions, self.d_qk, x.dtype)
        return rotate(x, cos, sin)

    def turns(self, positions: Tensor) -> Turns | None:
        rows = max(64, 1 << int(positions.amax()).bit_length())
        if rows <= MOST_ROWS:
            return Turns(*_angles(self.rope, self.d_qk, rows), positions)
        places = torch.arange(positions.numel(), device=positions.device).view(positions.shape)
        return Turns(*_angles_at(self.rope, self.d_qk, positions.flatten()), places)


class OriginalDistanceBias(Positions):
    """A learned number for each distance in the original sequence, −(max_positions − 1) .. max_positions − 1.

    Longer distances take the number at the edge, which is announced. Gathered for the pairs that meet, never
    as a whole table. Raises: ValueError for max_positions < 1.
    """

    adds_bias = True

    def __init__(self, max_positions: int) -> None:
        super().__init__()
        if max_positions < 1:
            raise ValueError(f"max_positions={max_positions} must be 1 or more")
        self.max_positions = max_positions
        self.table = nn.Parameter(torch.empty(2 * max_positions - 1))
        nn.init.normal_(self.table, std=0.02)

    def bias(self, query: Tensor, key: Tensor, apart: Tensor) -> Tensor:
        if key.numel() and (longest := int(key.amax())) >= self.max_positions:
            notice_fallback(
                "position 'simple'",
                f"position {longest} is beyond max_positions={self.max_positions}; longer distances repeat "
                "the bias of the longest",
            )
        distance = key.unsqueeze(-2) - query.unsqueeze(-1)
        return _looked_up(self.table, distance + self.max_positions - 1)


class CompressedDistanceBias(Positions):
    """A learned number for each distance in what is left: 3w, as the authors store it; 2w + 1 are read."""

    adds_bias = True

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.table = nn.Parameter(torch.empty(3 * window))
        nn.init.normal_(self.table, std=0.02)

    def bias(self, query: Tensor, key: Tensor, apart: Tensor) -> Tensor:
        # Pairs further apart do not meet; they only need some entry.
        return _looked_up(self.table, apart.clamp(-self.window, self.window) + self.window)


def positions_of(
    kinds: str | tuple[str, ...] | None, d_qk: int, reach: Reach, max_positions: int
) -> Positions:
    """By name: "rotary", "simple" (original distances), "local_pos" (compressed distances), None.

    Raises: ValueError for another name, two at once, or "local_pos" without a window.
    """
    names = (kinds,) if isinstance(kinds, str) else kinds or ()
    for name in names:
        if name not in KINDS:
            raise ValueError(f"position={name!r}; use one of {', '.join(map(repr, KINDS))}, or None")
    if len(names) > 1:
        raise ValueError(f"position={names!r} names several ways; use one of them, e.g. {names[0]!r}")
    if not names:
        return Positions()
    if names[0] == "rotary":
        return RotaryPositions(d_qk)
    if names[0] == "simple":
        return OriginalDistanceBias(max_positions)
    if not isinstance(reach, Window):
        raise ValueError(f"position='local_pos' counts inside a window, and attention reaches {reach}; "
                         "use 'rotary' or Window(...)")  # fmt: skip
    return CompressedDistanceBias(reach.size)


def _looked_up(table: Tensor, index: Tensor) -> Tensor:
    # The gradient of index_select is one pass of additions; that of table[index] sorts first.
    return table.index_select(0, index.clamp(0, len(table) - 1).flatten()).view(index.shape)


def _angles_at(rope: Rope, d_qk: int, positions: Int[Tensor, " rows"]) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (rows, half)."""
    cos, sin = (part[0, :, 0, d_qk // 2 :] for part in rope.tables(positions[None], d_qk, torch.float32))
    return cos.contiguous(), sin.contiguous()


@functools.lru_cache(maxsize=8)
def _angles(rope: Rope, d_qk: int, rows: int) -> tuple[Tensor, Tensor]:
    # Kept beyond this call: a tensor made in inference mode could not take part in training later.
    with torch.inference_mode(False):
        return _angles_at(rope, d_qk, torch.arange(rows))
