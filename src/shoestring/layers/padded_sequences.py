"""Rows with places that hold no token, or with several documents, for layers that keep a state."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Rows = Float[Tensor, "batch seq *rest"]


@dataclass(frozen=True)
class Front:
    """The tokens of every row moved to its start, in their order, padding behind them.

    order: for each new place the old one. tokens: how many of each row are real.
    """

    order: Int[Tensor, "batch seq"]
    tokens: Int[Tensor, " batch"]

    def take(self, x: Rows) -> Rows:
        """x in the new order."""
        return x.gather(1, self._index(x, self.order))

    def put_back(self, x: Rows) -> Rows:
        """x in the old order, 0 where there is no token."""
        return self.fill(x, 0.0).gather(1, self._index(x, self.order.argsort(1)))

    def fill(self, x: Rows, value: float) -> Rows:
        """x, in the new order, with `value` where there is no token."""
        padding = torch.arange(x.shape[1], device=x.device) >= self.tokens[:, None]
        return x.masked_fill(padding.reshape(*padding.shape, *[1] * (x.ndim - 2)), value)

    def behind(self, joined: Rows, count: int) -> Float[Tensor, "batch _count *rest"]:
        """The last `count` before each row's padding, of rows with `count` earlier inputs in front."""
        index = self.tokens[:, None] + torch.arange(count, device=joined.device)
        return joined.gather(1, self._index(joined, index))

    @staticmethod
    def _index(x: Tensor, places: Tensor) -> Tensor:
        return places.reshape(*places.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])


def to_front(present: Bool[Tensor, "batch seq"]) -> Front:
    """How to move the tokens of every row to its start."""
    return Front((~present).to(torch.uint8).argsort(dim=1, stable=True), present.sum(1))


def by_document(
    x: Float[Tensor, "batch seq dim"],
    documents: Int[Tensor, "_batch _seq"],
    read: Callable[[Float[Tensor, "n longest dim"], Bool[Tensor, "n longest"]], Tensor],
) -> Float[Tensor, "batch seq dim_out"]:
    """`read(rows, present)` of every document as a row of its own, put back where it was.

    documents: a document ends where the number changes, and with its row.
    Raises: ValueError for numbers of another shape than the rows.
    """
    if documents.shape != x.shape[:2]:
        raise ValueError(f"documents are {tuple(documents.shape)} for {tuple(x.shape[:2])} positions")
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    number = starts.flatten().cumsum(0) - 1
    lengths = number.bincount()
    place = torch.arange(len(number), device=x.device) - starts.flatten().nonzero()[:, 0][number]
    rows = x.new_zeros(len(lengths), int(lengths.max()), x.shape[2])
    rows = rows.index_put((number, place), x.flatten(0, 1))
    present = torch.arange(rows.shape[1], device=x.device) < lengths[:, None]
    return read(rows, present)[number, place].unflatten(0, x.shape[:2])
