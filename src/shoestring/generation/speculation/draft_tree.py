"""Tokens that may come next, as a tree: what a draft proposes and the target verifies in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class DraftTree:
    """Node 0, the root, is the last token of the text, which no cache holds yet; the others are drafted.

    parents: of every node one before it, −1 of the root. kind: drafts of one kind are about as reliable as
    one another. odds: the distributions that the tokens of a chain were drawn from; None where tokens were
    chosen, not drawn.

    Raises: ValueError for a node whose parent does not come before it, siblings with the same token, or odds
    that do not fit a chain.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    kind: int = 0
    odds: Float[Tensor, "drafted vocab"] | None = None

    def __post_init__(self) -> None:
        nodes = len(self.tokens)
        if nodes == 0 or len(self.parents) != nodes or self.parents[0] != -1:
            raise ValueError(
                f"{nodes} tokens with parents {self.parents}: give a parent for each, −1 for the root."
            )
        if bad := [i for i in range(1, nodes) if not 0 <= self.parents[i] < i]:
            raise ValueError(f"node {bad[0]} has parent {self.parents[bad[0]]}; it must be a node before it.")
        if len(set(zip(self.parents, self.tokens, strict=True))) < nodes:
            raise ValueError("two children of one node are the same token; each may be proposed once.")
        if self.odds is not None and (not self.is_chain or len(self.odds) != nodes - 1):
            raise ValueError(f"{len(self.odds)} distributions for {nodes - 1} drafted tokens of a chain.")

    @classmethod
    def chain(
        cls, root: int, drafted: Sequence[int], kind: int = 0, odds: Tensor | None = None
    ) -> "DraftTree":
        """A tree without branches."""
        return cls((root, *drafted), tuple(range(-1, len(drafted))), kind, odds)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether every node is the child of the one before it."""
        return self.parents == tuple(range(-1, len(self.tokens) - 1))

    def cut(self, drafted: int) -> "DraftTree":
        """The root and the first `drafted` of the other nodes."""
        odds = None if self.odds is None else self.odds[:drafted]
        return DraftTree(self.tokens[: drafted + 1], self.parents[: drafted + 1], self.kind, odds)

    def depths(self) -> list[int]:
        """Tokens between each node and the root."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return depths

    def child(self, node: int, token: int) -> int | None:
        """The child of a node that is this token, if it was drafted."""
        pairs = enumerate(zip(self.parents, self.tokens, strict=True))
        return next((i for i, pair in pairs if pair == (node, token)), None)

    def ancestors(self) -> Bool[Tensor, "nodes nodes"]:
        """Which nodes each one sees: itself and those above it."""
        seen = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen
