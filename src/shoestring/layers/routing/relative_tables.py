"""Relative positions as learned vectors, added to keys and to values.

score_ij += q_i · R_K[clip(j − i)], out_i += Σ_j a_ij R_V[clip(j − i)], clip to −M .. M.

Source: Shaw et al. 2018, "Self-Attention with Relative Position Representations", eq. 3-5.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class RelativeTables(nn.Module):
    """R_K and R_V, of 2M + 1 vectors each, shared by the heads; distances beyond M count as M.

    Raises: ValueError for max_relative_position or dim below 1.
    """

    def __init__(self, max_relative_position: int, dim: int) -> None:
        super().__init__()
        for name, value in (("max_relative_position", max_relative_position), ("dim", dim)):
            if value < 1:
                raise ValueError(f"{name}={value} must be 1 or more.")
        self.max_relative_position = max_relative_position
        self.keys = nn.Parameter(torch.randn(2 * max_relative_position + 1, dim) * dim**-0.5)
        self.values = nn.Parameter(torch.randn(2 * max_relative_position + 1, dim) * dim**-0.5)

    def scores(
        self, q: Float[Tensor, "*rows dim"], distance: Int[Tensor, "*#rows columns"], reach: int
    ) -> Float[Tensor, "*rows columns"]:
        """q_i · R_K[distance]. reach: no distance is larger; it bounds the part of the table that is read."""
        edge, table = self._part(self.keys, reach)
        every = q @ table.T.to(q.dtype)
        return every.gather(-1, self._index(distance, edge, (*q.shape[:-1], distance.shape[-1])))

    def outputs(
        self, weights: Float[Tensor, "*rows columns"], distance: Int[Tensor, "*#rows columns"], reach: int
    ) -> Float[Tensor, "*rows dim"]:
        """Σ_j weights_j R_V[distance_j]."""
        edge, table = self._part(self.values, reach)
        by_distance = weights.new_zeros(*weights.shape[:-1], 2 * edge + 1)
        by_distance = by_distance.scatter_add(-1, self._index(distance, edge, weights.shape), weights)
        return by_distance @ table.to(weights.dtype)

    def _part(self, table: Tensor, reach: int) -> tuple[int, Tensor]:
        edge = min(reach, self.max_relative_position)
        return edge, table.narrow(0, self.max_relative_position - edge, 2 * edge + 1)

    def _index(self, distance: Tensor, edge: int, shape: tuple[int, ...]) -> Tensor:
        return (distance.clamp(-edge, edge) + edge).expand(shape)
