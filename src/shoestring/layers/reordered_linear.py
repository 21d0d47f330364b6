"""A linear layer whose columns are stored in another order than its inputs come in.

Checkpoints of GPTQ that rounded columns by the size of their inputs ("desc_act") give neighbouring columns
different scales; sorted by group, they are a plain packed matrix again.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoestring.layers.packed_linear import PackedLinear


class ReorderedLinear(nn.Module):
    """y = inner(x[order]): column i of the inner layer belongs to input order[i].

    Shapes: x (…, in_features) -> y (…, out_features). Raises: ValueError for an order that is no permutation.
    """

    order: Tensor

    def __init__(self, inner: nn.Linear | PackedLinear, order: Int[Tensor, " in_features"]) -> None:
        super().__init__()
        self.inner = inner
        self.in_features, self.out_features = inner.in_features, inner.out_features
        meta = order.is_meta
        if not meta and not torch.equal(order.sort().values.cpu().long(), torch.arange(self.in_features)):
            raise ValueError(f"order must hold each of the {self.in_features} inputs once.")
        self.register_buffer("order", order.to(torch.int32))

    @property
    def bias(self) -> Tensor | None:
        return self.inner.bias

    @property
    def weight(self) -> Float[Tensor, "out_features in_features"]:
        """The whole matrix in the order of the inputs, dequantised anew at each access."""
        return self.inner.weight[:, self.order.long().argsort()]

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        y: Tensor = self.inner(x.index_select(-1, self.order))
        return y
