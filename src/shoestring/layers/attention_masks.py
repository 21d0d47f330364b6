"""What attention reads of a cache, and the masks that say which of it a row sees."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class KVView:
    """What attention reads of one layer. Slots are those of the longest row, or the selected ones.

    pos: logical position of each slot, one row for all heads or one per head. valid: which slots hold
    something; None where all do. n_tokens: how many tokens a slot stands for; None where it is always one.
    """

    k: Float[Tensor, "batch heads slots dim"]
    v: Float[Tensor, "batch heads slots dim"]
    pos: Int[Tensor, "batch rows slots"]
    valid: Bool[Tensor, "batch rows slots"] | None = None
    n_tokens: Int[Tensor, "batch rows slots"] | None = None


@dataclass(frozen=True)
class Causal:
    """A row sees the keys at its own position and before. Positions are compared, so slots may hold anything.

    newest: a promise that the last keys are the rows' own, in the order of the rows, that no row is padding,
    and that all other keys come before them; it saves the comparison.
    """

    pos_q: Int[Tensor, "batch n"]
    pos_k: Int[Tensor, "batch rows slots"]
    newest: bool = False

    def seen(self, rows: slice, keys: slice, window: int | None = None) -> Bool[Tensor, "batch heads r s"]:
        """Which of the keys each of the rows sees, within the window if there is one."""
        behind = self.pos_q[:, None, rows, None] - self.pos_k[:, :, None, keys]
        return behind >= 0 if window is None else (behind >= 0) & (behind < window)

    def own(self, rows: slice, keys: slice) -> Bool[Tensor, "batch heads r s"]:
        """Which key is the row's own."""
        return self.pos_q[:, None, rows, None] == self.pos_k[:, :, None, keys]

    def consecutive(self) -> bool:
        """Whether the keys stand at consecutive positions; needs `newest`."""
        before = torch.arange(1 - self.pos_k.shape[2], 1, device=self.pos_k.device)
        return bool((self.pos_k == self.pos_k[:, :, -1:] + before).all())


@dataclass(frozen=True)
class Full:
    """Every row sees every key."""

    def seen(self, rows: slice, keys: slice, window: int | None = None) -> None:
        """None: all keys."""


@dataclass(frozen=True)
class Tree:
    """The last keys are the rows' own and seen as `among` says, row by key; all others are seen by all."""

    among: Bool[Tensor, "#batch n n"]

    def seen(self, rows: slice, keys: slice, window: int | None = None) -> Bool[Tensor, "#batch 1 r s"]:
        """Which of the keys each of the rows sees."""
        n = self.among.shape[-1]
        among = self.among[:, None, rows]
        before = among.new_ones(()).expand(*among.shape[:-1], max(keys.stop - n, 0))
        return torch.cat([before, among], -1)[..., keys]


@dataclass(frozen=True)
class Explicit:
    """A row sees the keys that are marked."""

    marked: Bool[Tensor, "#batch #heads n slots"]

    def seen(self, rows: slice, keys: slice, window: int | None = None) -> Bool[Tensor, "#batch #heads r s"]:
        """Which of the keys each of the rows sees."""
        return self.marked[:, :, rows, keys]


Mask = Causal | Full | Tree | Explicit
