"""The cumulative importance of every token of a sequence: one number for all heads and layers.

s_j ← gamma · s_j + Σ over heads and rows of p_ij, layer after layer and step after step.

Source: Wang et al. 2021, "SpAtten", section III-A, algorithm 2.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoestring.generation.selection import top_k


class TokenScores:
    """Sums by logical position. gamma: what an old sum is multiplied by before a layer adds to it.

    Raises: ValueError for gamma outside (0, 1].
    """

    def __init__(self, batch: int, gamma: float = 1.0, device: torch.device | str = "cpu") -> None:
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma={gamma} must be above 0 and at most 1.")
        self.gamma = gamma
        # In float64: many small shares are added to sums that grow with the sequence.
        self.sums: Float[Tensor, "batch positions"] = torch.zeros(
            batch, 0, dtype=torch.float64, device=device
        )

    def grow(self, positions: int) -> None:
        """Make room for so many positions; new ones have had nothing."""
        missing = positions - self.sums.shape[1]
        if missing > 0:
            self.sums = torch.nn.functional.pad(self.sums, (0, missing))

    def forget(self, pos: Int[Tensor, "batch n"]) -> None:
        """Tokens at these positions (−1: none) are new: whatever was there before was taken back."""
        present = pos >= 0
        rows = torch.arange(len(pos), device=pos.device)[:, None].expand_as(pos)
        self.sums[rows[present], pos[present]] = 0.0

    def add(self, colsum: Float[Tensor, "batch slots"], pos: Int[Tensor, "batch slots"]) -> None:
        """Add what slots at these positions (−1: none) got in one layer."""
        present = pos >= 0
        if self.gamma != 1:
            rows = torch.arange(len(pos), device=pos.device)[:, None].expand_as(pos)
            self.sums[rows[present], pos[present].long()] *= self.gamma
        given = colsum.double().masked_fill(~present, 0.0)
        self.sums.scatter_add_(1, pos.clamp(min=0).long(), given)

    def ranking(
        self, next_pos: Int[Tensor, " batch"], *, normalised: bool = False
    ) -> Float[Tensor, "batch positions"]:
        """The sums; normalised: by the number of query rows that could see each token, from its own on."""
        if not normalised:
            return self.sums
        positions = torch.arange(self.sums.shape[1], device=self.sums.device)
        return self.sums / (next_pos[:, None] - positions).clamp(min=1)

    def cut(
        self,
        live: Bool[Tensor, "batch positions"],
        count: int,
        protected: Bool[Tensor, "batch positions"],
        ranking: Float[Tensor, "batch positions"],
        layer: int,
    ) -> Bool[Tensor, "batch positions"]:
        """The `count` live tokens that go on to a layer. Raises: FloatingPointError for NaN, naming it."""
        what = f"token scores at layer {layer}"
        return top_k(ranking, count, protected=protected, valid=live, what=what)

    def clone(self) -> "TokenScores":
        """A copy that shares nothing."""
        other = TokenScores(self.sums.shape[0], self.gamma, self.sums.device)
        other.sums = self.sums.clone()
        return other
