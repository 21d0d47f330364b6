"""Torch's optimizers with states, and weights, stored in a low number format.

After each native step every state tensor is rounded, and the weights if asked for. Weights in a low format
need stochastic rounding: an update below half a spacing is lost to nearest, always, but survives in
expectation when it is rounded up as often as it deserves.

Source: Gupta et al. 2015, "Deep Learning with Limited Numerical Precision", section 3; Carson and Chen 2025,
"Pychop", section 5.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, optim

from shoestring.layers.emulated.straight_through import TensorRounder, round_tensor


class EmulatedStates(optim.Optimizer):
    """Mixin before a native optimizer class; takes its arguments and two rounders.

    `state_rounder`: one rounder for every state tensor, or one by name of state ("exp_avg_sq": …; a state
    not named stays as it is). `weight_rounder` rounds the parameters. Step counters are never rounded.
    Without rounders the steps are the native optimizer's, bit for bit.

    Raises: ValueError, on construction, for the name of a state that this optimizer does not keep.
    """

    state_names: tuple[str, ...]

    def __init__(
        self,
        *args: Any,
        state_rounder: TensorRounder | Mapping[str, TensorRounder] | None = None,
        weight_rounder: TensorRounder | None = None,
        **options: Any,
    ) -> None:
        if isinstance(state_rounder, Mapping):
            if unknown := sorted(set(state_rounder) - set(self.state_names)):
                raise ValueError(
                    f"{type(self).__name__} keeps no state {', '.join(map(repr, unknown))}; its states are "
                    f"{', '.join(self.state_names)}"
                )
            self._state_rounders = dict(state_rounder)
        else:
            rounder = state_rounder
            self._state_rounders = {} if rounder is None else dict.fromkeys(self.state_names, rounder)
        self._weight_rounder = weight_rounder
        super().__init__(*args, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The native step, then the roundings."""
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._round(parameter)
        return loss

    def _round(self, parameter: Tensor) -> None:
        for name, rounder in self._state_rounders.items():
            value = self.state[parameter].get(name)
            if isinstance(value, Tensor):
                value.copy_(round_tensor(value, rounder))
        if self._weight_rounder is not None:
            parameter.copy_(round_tensor(parameter, self._weight_rounder))


class EmulatedSGD(EmulatedStates, optim.SGD):
    """`torch.optim.SGD` with a rounded momentum buffer; see `EmulatedStates` for the rounders."""

    state_names = ("momentum_buffer",)


class EmulatedAdam(EmulatedStates, optim.Adam):
    """`torch.optim.Adam` with rounded moments; see `EmulatedStates` for the rounders."""

    state_names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class EmulatedAdamW(EmulatedStates, optim.AdamW):
    """`torch.optim.AdamW` with rounded moments; see `EmulatedStates` for the rounders."""

    state_names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class EmulatedRMSprop(EmulatedStates, optim.RMSprop):
    """`torch.optim.RMSprop` with rounded averages; see `EmulatedStates` for the rounders.

    With `centered=True` the native step takes the root of a difference of two averages: rounded coarsely it
    may turn negative, and the weights NaN, as on a machine that stores them so.
    """

    state_names = ("square_avg", "momentum_buffer", "grad_avg")


class EmulatedAdagrad(EmulatedStates, optim.Adagrad):
    """`torch.optim.Adagrad` with a rounded sum of squares; see `EmulatedStates` for the rounders."""

    state_names = ("sum",)
