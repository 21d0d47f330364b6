"""Muon for matrices, AdamW for everything else, as one optimizer.

Muon's step is momentum with all singular values set to about 1; scaled to the size of AdamW's steps, so that
rates and decay mean the same.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon
is Scalable for LLM Training", section 2.2 (the scale).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

OTHER_RATE = 0.1
"""The rate of what is no matrix, in parts of the plan's; a hint of a parameter's own stands."""


class MuonWithAdamW(Optimizer):
    """groups: as `torch.optim` takes them, each with its `lr` and `weight_decay`. betas: AdamW's.

    Raises: as `torch.optim.Muon`.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.95),
        momentum: float = 0.95,
    ) -> None:
        matrices = _those(groups, lambda parameter: parameter.dim() == 2)
        others = _those(groups, lambda parameter: parameter.dim() != 2)
        parts: list[Optimizer] = []
        if matrices:
            parts.append(torch.optim.Muon(matrices, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw"))
        if others:
            parts.append(torch.optim.AdamW(others, lr=OTHER_RATE * lr, betas=betas))
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts
        # One state: what is saved and restored of this optimizer is that of its parts.
        for part in parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of all parts. closure: as of `torch.optim`, called once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


def _those(groups: list[dict[str, Any]], wanted: Callable[[torch.Tensor], bool]) -> list[dict[str, Any]]:
    """The groups with the wanted parameters only, where there are any."""
    chosen = [{**group, "params": [p for p in group["params"] if wanted(p)]} for group in groups]
    return [group for group in chosen if group["params"]]
