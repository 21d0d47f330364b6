"""Many steps of a recurrence as one matrix: how a prompt is read into a state."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.layers.state_space.recurrence import Recurrence, as_real, as_state


@dataclass(frozen=True)
class ChunkOperator:
    """`size` steps as one matrix a feature, from (state, inputs) to (state, outputs): for reading a prompt.

    It is found by letting the recurrence run from every unit state, so it fits any of them.
    """

    recurrence: Recurrence
    matrix: Float[Tensor, "features reals_and_size reals_and_outputs"]
    size: int

    @staticmethod
    @torch.no_grad()
    def of(recurrence: Recurrence, size: int) -> "ChunkOperator":
        """The operator for chunks of `size` steps."""
        zero = recurrence.start(1)
        features, states = zero.shape[1:]
        reals = states * (2 if zero.is_complex() else 1)
        real = zero.real.dtype if zero.is_complex() else zero.dtype
        unit = torch.eye(
            reals + 1, reals, dtype=real, device=zero.device
        )  # the last one: no state but an input
        x = as_state(unit.unsqueeze(1).expand(-1, features, -1).contiguous(), zero)
        u = torch.zeros(reals + 1, features, dtype=real, device=zero.device)
        u[-1] = 1
        outputs, impulse = [], []
        for _ in range(size):
            y, x = recurrence.advance(x, u)
            outputs.append(y)
            impulse.append(as_real(x)[-1])
            u = torch.zeros_like(u)
        seen = torch.stack(outputs, dim=-1)  # (reals + 1, channels, features, size)
        channels = seen.shape[1]
        matrix = unit.new_zeros(features, reals + size, reals + channels * size)
        matrix[:, :reals, :reals] = as_real(x)[:-1].transpose(0, 1)
        matrix[:, :reals, reals:] = seen[:-1].permute(2, 0, 1, 3).flatten(2)
        matrix[:, reals:, :reals] = torch.stack(impulse[::-1], dim=1)
        answers = matrix[:, reals:, reals:].view(features, size, channels, size)
        for at in range(size):
            answers[:, at, :, at:] = seen[-1, :, :, : size - at].transpose(0, 1)
        return ChunkOperator(recurrence, matrix, size)

    def read(self, u: Float[Tensor, "batch seq features"], x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (batch, seq, channels, features) and the state after them.

        What does not fill a chunk goes first, step by step.
        """
        single = u.shape[1] % self.size
        outputs = []
        for value in u[:, :single].unbind(1):
            y, x = self.recurrence.advance(x, value)
            outputs.append(y.unsqueeze(1))
        real = as_real(x).transpose(0, 1)  # (features, batch, reals)
        reals = real.shape[-1]
        for first in range(single, u.shape[1], self.size):
            chunk = u[:, first : first + self.size]
            found = torch.cat([real, chunk.permute(2, 0, 1)], dim=-1) @ self.matrix
            real = found[..., :reals]
            y = found[..., reals:].unflatten(-1, (-1, self.size))  # (features, batch, channels, size)
            outputs.append(y.permute(1, 3, 2, 0))
        return torch.cat(outputs, dim=1), as_state(real.transpose(0, 1).contiguous(), x)
