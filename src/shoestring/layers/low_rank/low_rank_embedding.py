"""A look-up table as the product of two thin matrices: short rows, and one map that widens them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class LowRankEmbedding(nn.Module):
    """row(i) = table[i] · wide, with a table (vocab_size, rank) and wide (rank, d_model).

    Shapes: ids (…) -> (…, d_model). Rows have unit variance in each channel, as those of `nn.Embedding`.

    Raises: ValueError for a rank below 1.
    Source: Winata et al. 2020, section 2; Lan et al. 2020, "ALBERT", section 3.1 (factorised embedding).
    """

    def __init__(self, vocab_size: int, d_model: int, rank: int) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank={rank} must be at least 1.")
        self.rank = rank
        self.table = nn.Embedding(vocab_size, rank)
        self.wide = nn.Linear(rank, d_model, bias=False)
        nn.init.normal_(self.wide.weight, std=rank**-0.5)

    @property
    def weight(self) -> Float[Tensor, "vocab_size d_model"]:
        """The table that the two make together."""
        return self.table.weight @ self.wide.weight.T

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
        return self.wide(self.table(ids))


def naive_low_rank_embedding(
    layer: LowRankEmbedding, ids: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch d_model"]:
    """A row of the product: the meaning of `LowRankEmbedding`."""
    return torch.nn.functional.embedding(ids, layer.weight)
