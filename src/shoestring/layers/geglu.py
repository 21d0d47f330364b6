"""A feed-forward network with a gate: W_out(gelu(W_gate x) ⊙ W_in x), no biases.

Source: Shazeer 2020, "GLU Variants Improve Transformer", eq. 6.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class GEGLU(nn.Module):
    """dim -> hidden, gated by as many channels -> dim.

    Raises: ValueError for sizes below 1.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"{name}={value} must be 1 or more.")
        self.into = nn.Linear(dim, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """One token at a time, whatever the leading axes."""
        gate, value = self.into(x).chunk(2, -1)
        return self.out(F.gelu(gate) * value)


def naive_geglu(
    x: Float[Tensor, "*batch dim"],
    gate: Float[Tensor, "hidden dim"],
    value: Float[Tensor, "hidden dim"],
    out: Float[Tensor, "dim hidden"],
) -> Float[Tensor, "*batch dim"]:
    """The equation."""
    return (F.gelu(x @ gate.T) * (x @ value.T)) @ out.T
