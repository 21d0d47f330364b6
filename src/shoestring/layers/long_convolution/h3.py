"""Two long convolutions between products: what H3 layers do with state spaces, with freely learned kernels.

w = v ∘ (k ∗ K₁ + D₁ k), y = W_o (q ∘ (w ∗ K₂ + D₂ w)), where q, k and v are linear maps of the input.

Source: Fu et al. 2023, "Hungry Hungry Hippos", section 3; "Simple Hardware-Efficient Long Convolutions for
Sequence Modeling", section 4.2, puts long convolutions in the place of its state spaces.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoestring.layers.long_convolution.long_convolution import NO_REGULARISER, LongFilter
from shoestring.layers.long_convolution.squash import KernelInit, KernelRegulariser, random_kernel


class H3LongConv(nn.Module):
    """A causal token mixer for language models. Shapes: (batch, seq ≤ kernel_length, d_model) -> the same.

    The published model has 12 layers of 768 features, with attention in the first and the eighth.
    Arguments and errors as `LongFilter`.
    """

    def __init__(
        self,
        d_model: int,
        kernel_length: int,
        *,
        regulariser: KernelRegulariser = NO_REGULARISER,
        init: KernelInit = random_kernel,
        kernel_learning_rate: float | None = 1e-3,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(d_model, d_model) for _ in range(4))
        self.key_filter, self.product_filter = (
            LongFilter(
                d_model,
                kernel_length,
                regulariser=regulariser,
                init=init,
                kernel_learning_rate=kernel_learning_rate,
                generator=generator,
            )
            for _ in range(2)
        )

    def forward(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        q, k, v = self.query(x).mT, self.key(x).mT, self.value(x).mT
        w = self.key_filter(k).squeeze(-3) * v
        return self.output((q * self.product_filter(w).squeeze(-3)).mT)
