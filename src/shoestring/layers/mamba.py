"""The Mamba mixer: a sequence layer whose memory of the past has a fixed size.

Source: Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", figure 3.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoestring.layers.selective_branch import SelectiveBranch
from shoestring.layers.state import State

Sequence = Float[Tensor, "batch seq d_model"]


class MambaMixer(nn.Module):
    """[x, z] = in_proj(hidden), out_proj(branch(x, z)): (batch, seq, d_model) to the same.

    d_inner is expand · d_model; dt_rank is by default ceil(d_model / 16). Time and the memory kept for the
    gradient grow linearly in seq; a step takes as long at any position. `Recurrent` by `init_state`,
    `prefill` and `step`; reading from the last position to the first (`reverse`) has no such state.

    Raises: ValueError for a size below 1.
    """

    def __init__(
        self, d_model: int, *, d_state: int = 16, d_conv: int = 4, expand: int = 2, dt_rank: int | None = None
    ) -> None:
        super().__init__()
        dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        check_sizes(d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand, dt_rank=dt_rank)
        d_inner = expand * d_model
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.branch = SelectiveBranch(d_inner, d_state, d_conv, dt_rank)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, hidden: Sequence, *, reverse: bool = False) -> Sequence:
        x, z = self.in_proj(hidden).chunk(2, -1)
        return self.out_proj(self.branch(x, z, reverse=reverse))

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Before the first token: "conv" (batch, d_conv - 1, d_inner), "ssm" (batch, d_inner, d_state)."""
        return self.branch.init_state(batch, device=device, dtype=dtype)

    def prefill(self, x: Sequence, state: State) -> tuple[Sequence, State]:
        """The outputs of these tokens, which follow those that `state` has seen, and the state after them."""
        inner, z = self.in_proj(x).chunk(2, -1)
        y, state = self.branch.prefill(inner, z, state)
        return self.out_proj(y), state

    def step(
        self, x: Float[Tensor, "batch d_model"], state: State
    ) -> tuple[Float[Tensor, "batch d_model"], State]:
        """The output of one more token, and the state after it."""
        inner, z = self.in_proj(x).chunk(2, -1)
        y, state = self.branch.step(inner, z, state)
        return self.out_proj(y), state


def check_sizes(**sizes: int) -> None:
    """Raises: ValueError naming a size that is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1")
