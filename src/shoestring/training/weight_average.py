"""An exponential moving average of a model's weights, for judging and sampling: steadier than the last ones.

a_t = d_t a_{t-1} + (1 - d_t) w_t with d_t = min(decay, (1 + t) / (10 + t)), so that it starts by copying and
soon forgets the fresh weights.

Source: Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; the rise of d_t is
that of TensorFlow's ExponentialMovingAverage.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """Wraps `model` and keeps the average of its trained weights beside it, as buffers.

        average = WeightAverage(model, decay=0.999)
        Trainer(average, loss, plan, on_step=average.on_step).run(batches)
        with average.applied() as model:
            ...  # `model` with averaged weights

    Called, it is `model`. The average is part of the state dict, so a resumed run goes on with it; the
    model's own buffers are not averaged. Raises: ValueError for a decay outside 0 … 1, or a model without
    weights that are trained.
    """

    updates: Tensor

    def __init__(self, model: nn.Module, decay: float | int = 0.9999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must be 0 or more and below 1, e.g. 0.999")
        self.model = model
        self.decay = float(decay)
        self._names = [name for name, weight in model.named_parameters() if weight.requires_grad]
        if not self._names:
            raise ValueError("the model has no weights that are trained; there is nothing to average")
        for index, name in enumerate(self._names):
            self.register_buffer(f"average_{index}", model.get_parameter(name).detach().clone())
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.model(*args, **kwargs)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now; the first time, they become the average."""
        done = int(self.updates)
        decay = min(self.decay, (1 + done) / (10 + done)) if done else 0.0
        torch._foreach_lerp_(self._averages(), self._weights(), 1 - decay)
        self.updates += 1

    def on_step(self, trainer: object, step: int, loss: float) -> None:
        """`update`, in the form in which a `Trainer` calls after each step."""
        self.update()

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The model with averaged weights; its own come back at the end of the block, whatever happens."""
        own = [weight.detach().clone() for weight in self._weights()]
        self._set(self._averages())
        try:
            yield self.model
        finally:
            self._set(own)

    def _averages(self) -> list[Tensor]:
        return [self.get_buffer(f"average_{index}") for index in range(len(self._names))]

    def _weights(self) -> list[Tensor]:
        return [self.model.get_parameter(name) for name in self._names]

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(self._weights(), values)
